"""Deadlines: whether SAM still fits, by what it took last time."""

from __future__ import annotations

from numbers import Real

from clipsam.runtime.core.errors import OptionError

# What a part left unrefined takes off the expected time of SAM, so that it is tried again (after
# about 35 late parts when SAM takes twice as long as there is).
FORGET = 0.98


class RefineTime:
    """What SAM takes for a part, learnt from the one before; in milliseconds."""

    def __init__(self) -> None:
        self._ms = 0.0  # of one look of SAM's

    def expected(self, crops: int) -> float:
        """For a part of which SAM is shown so many crops, 0 for the whole."""
        return self._ms * max(1, crops)

    def took(self, ms: float, crops: int = 0) -> None:
        """Learn from a part that SAM refined."""
        self._ms = ms / max(1, crops)

    def forget(self) -> None:
        """A part was left unrefined: one slow run must not switch SAM off for good."""
        self._ms *= FORGET


def check_deadline(deadline_ms: float | None) -> None:
    """Raise OptionError unless it is a number of milliseconds, or None for no deadline."""
    known = isinstance(deadline_ms, Real) and not isinstance(deadline_ms, bool)
    if deadline_ms is not None and not (known and deadline_ms >= 0):  # nan, too
        raise OptionError(
            f"deadline_ms={deadline_ms!r} must be a number of milliseconds, at least 0, or None."
        )
