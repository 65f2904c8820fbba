"""TensorRT by its Python bindings, the CUDA runtime by ctypes; neither PyTorch nor pycuda."""
