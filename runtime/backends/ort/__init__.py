"""ONNX Runtime: providers `cpu` and `cuda`."""
