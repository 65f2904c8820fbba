"""Python's `logging`, below the logger `clipsam`: quiet unless a program asks for it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ROOT = logging.getLogger("clipsam")
_ROOT.addHandler(logging.NullHandler())  # or Python would print warnings that nobody asked for
_CALLED = {logging.ERROR: "error", logging.WARNING: "note"}


def get_logger(name: str = "") -> logging.Logger:
    """The logger `clipsam`, or `clipsam.NAME`."""
    return _ROOT.getChild(name) if name else _ROOT


@contextmanager
def log_to_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """Print what is logged meanwhile from `level` on, as a command does; a line each."""
    handler, before = _ToStderr(level), _ROOT.level
    _ROOT.addHandler(handler)
    _ROOT.setLevel(level)
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.setLevel(before)


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        called = _CALLED.get(record.levelno, record.levelname.lower())
        print(f"{called}: {record.getMessage()}", file=sys.stderr)
