"""Losses, the loop, and the tasks that it trains: UMCI, CLIP and SAM of `tiny`."""
