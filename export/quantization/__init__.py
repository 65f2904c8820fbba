"""Graphs in lower precision: half and bfloat16, static int8 (TensorRT), dynamic int8 (CPU)."""
