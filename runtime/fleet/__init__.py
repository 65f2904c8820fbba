"""More than one machine: a plant's PostgreSQL database, and Triton Inference Server."""
