"""Programs that are told to stop, and end as after Ctrl-C: cleaned up."""

from __future__ import annotations

import signal
from types import FrameType

_told: list[int] = []


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


def _stop(number: int, _frame: FrameType | None) -> None:
    _told.append(number)
    _raise(number)


def _raise(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
