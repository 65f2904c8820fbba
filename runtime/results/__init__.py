"""The results of a folder: the record of what was judged, and the names of its files."""
