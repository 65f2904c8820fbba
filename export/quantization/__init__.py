"""Graphs in lower precision: half and bfloat16, static int8 for TensorRT, dynamic int8 for the CPU."""
