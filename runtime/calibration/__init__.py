"""Good parts in, a limit with a promise out: NumPy and OpenCV only.

Imports core, ops, images, stages and planting; the commands and the pipeline import it.
"""
