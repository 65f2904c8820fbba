"""`clipsam serve`: inspection over HTTP by one process with one opened bundle, and a page."""
