"""`clipsam store push`: the stores of many boxes in one PostgreSQL database; extra `postgres`."""
