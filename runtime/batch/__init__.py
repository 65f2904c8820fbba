"""`clipsam batch`: any number of pictures on Ray, each judged once; extra `ray`."""
