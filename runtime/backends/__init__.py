"""Sessions that run a graph: the interface in `base`, one folder a backend.

A backend imports its library when a session is opened, never when it is imported.
"""
