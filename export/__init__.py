"""From PyTorch weights to a bundle: graphs, parity, engines."""
