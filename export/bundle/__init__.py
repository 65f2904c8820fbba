"""A bundle is staged, filled, checked and moved into place here."""
