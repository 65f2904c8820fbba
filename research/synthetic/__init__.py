"""Procedural parts, cameras and defects: what `tiny` learns from. NumPy and OpenCV only."""
