"""The report of a run or of a line: one HTML file, and a contact sheet."""
