"""Programs that are told to stop, and end as after Ctrl-C: cleaned up."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_told: list[int] = []
_held = False


def heed_stop_signals() -> None:
    """SIGINT raises KeyboardInterrupt and SIGTERM SystemExit(143), wherever the program is."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by a shell
        signal.signal(signal.SIGINT, _stop)


def check_told() -> None:
    """Raise once more what a signal raised, between two steps of long work.

    Python only prints what is raised while it runs a finaliser or the callback of a weak
    reference, and torch's exporter has thousands of them: the work would go on.
    """
    if _told:
        _raise(_told[0])


@contextmanager
def stops_held() -> Iterator[None]:
    """Raise what a signal would raise within only at the end.

    For imports: libraries in C take a KeyboardInterrupt in the midst of theirs for a module that
    is missing, and print a traceback.
    """
    global _held
    outer, _held, before = _held, True, len(_told)
    try:
        yield
    finally:
        _held = outer
        if not outer and len(_told) > before:
            _raise(_told[0])


def is_closed_pipe(error: OSError) -> bool:
    """Whether the reader of a pipe closed it, as in `clipsam info BUNDLE | head`."""
    on_windows = sys.platform == "win32" and error.errno == errno.EINVAL
    return isinstance(error, BrokenPipeError) or on_windows


def _stop(number: int, _frame: FrameType | None) -> None:
    _told.append(number)
    if not _held or len(_told) > 1:  # who asks twice is not kept waiting
        _raise(number)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
