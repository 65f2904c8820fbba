"""The three graphs as PyTorch modules and their way to ONNX."""
