"""`clipsam triton`: a model repository for Triton Inference Server, made of a bundle."""
