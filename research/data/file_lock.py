"""A lock between processes that the system frees when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`. When another process has it, `busy` is called first: it says
    that there is something to wait for, or raises so as not to wait."""
    try:
        import fcntl
    except ImportError:  # Windows: one run at a time is the user's affair there
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
