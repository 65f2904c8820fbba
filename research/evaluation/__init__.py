"""Metrics, what is measured, and the tables that come of it."""
