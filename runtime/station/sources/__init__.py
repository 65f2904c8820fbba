"""Where a station's pictures come from: a folder, a camera or stream, paths on standard input."""
