"""What every part of the runtime may import: errors, files, the result. Imports nothing of it."""
