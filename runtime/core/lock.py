"""An advisory lock on an open file, which the system frees however its holder ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 40  # a locked byte cannot be read by others on Windows: lock one that never exists

    def try_lock(descriptor: int) -> bool:
        """Lock the file unless another descriptor has; returns whether. Raises OSError."""
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Lock the file unless another descriptor has; returns whether. Raises OSError."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def claim(path: Path) -> int | None:
    """Lock a file of this name, made where it is missing: its descriptor, to be closed when done.

    None where another has it. Raises OSError.
    """
    descriptor, locked = os.open(path, os.O_RDWR | os.O_CREAT, 0o666), False
    try:
        locked = try_lock(descriptor)
        return descriptor if locked else None
    finally:
        if not locked:
            os.close(descriptor)
