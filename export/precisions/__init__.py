"""The table of precisions: how each is made, checked and judged."""
