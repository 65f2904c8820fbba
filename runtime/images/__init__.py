"""Images in and out: what an image is, reading files within bounds, drawing results."""
