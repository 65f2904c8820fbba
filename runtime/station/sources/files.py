"""Whether a file is there, unchanged, and written to its end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from clipsam.runtime.core.files import sha256

State = tuple[int, int, int]  # size, time of writing in ns, inode

_TAIL = 64  # bytes, of which the end of a picture is told
_ENDS = {b"\x89PNG": b"IEND\xaeB`\x82", b"\xff\xd8": b"\xff\xd9"}  # by how a file begins


def state_of(path: Path) -> State | None:
    """What changes when a file is written to; None where there is no regular file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def file_digest(path: Path) -> str | None:
    """sha256 of a file that can be read, else None."""
    try:
        return sha256(path)
    except (OSError, ValueError):
        return None


def ends_well(path: Path) -> bool | None:
    """Whether the file ends as it should by how it begins, whatever it is called; None where that
    cannot be told."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
    except OSError:
        return False
    for begin, end in _ENDS.items():
        if head.startswith(begin):
            return tail.rstrip(b"\0\r\n").endswith(end)
    if head.startswith(b"BM"):
        return size >= int.from_bytes(head[2:6], "little") > 0
    if head.startswith(b"RIFF"):
        return size >= int.from_bytes(head[4:8], "little") + 8 > 8
    return None if head.startswith((b"II", b"MM")) else False  # TIFF ends anyhow
