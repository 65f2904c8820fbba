"""Data sets, their layouts, and what training takes from them."""
