"""Graphs in lower precision: half, bfloat16, int8 (TensorRT), and the two int8 of CPUs."""
