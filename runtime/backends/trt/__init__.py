"""TensorRT through its Python bindings and the CUDA runtime through ctypes; neither PyTorch nor pycuda."""
