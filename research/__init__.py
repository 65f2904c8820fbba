"""Train, evaluate and hold the method against a plain PyTorch reference."""
