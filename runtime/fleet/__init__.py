"""More than one machine: Ray, a plant's PostgreSQL database, and Triton Inference Server."""
