"""A station beside a line: `clipsam watch`, its store, and what a person does with them.

A part is never lost and never judged twice: its picture is safe on disk, then its row says `taken`,
then it is judged, then its row says `judged`, and only then is the picture moved or deleted.
"""
