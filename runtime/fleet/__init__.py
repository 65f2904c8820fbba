"""More than one machine: `clipsam batch` on Ray."""
