"""Procedural defects, and how they are planted on pictures of good parts; NumPy and OpenCV only."""
