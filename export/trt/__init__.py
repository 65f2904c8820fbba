"""TensorRT engines, built on the box from a bundle: imports neither torch nor onnx."""
