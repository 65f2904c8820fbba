"""What the store keeps of a part's result, or of what it met instead of one."""

from __future__ import annotations

from functools import cache
from typing import Any

from clipsam.runtime.core.errors import ClipSAMError, DamagedError, ImageError
from clipsam.runtime.core.result import DAMAGED, NOT_JUDGED, UNREADABLE, Result
from clipsam.runtime.station.part import COLUMNS, printable

# Why a station did not judge a part, beside `core.result.REASONS`.
FAILED, CRASHED = "failed", "crashed"
MISSING, OVERWRITTEN, NO_PICTURE = "missing", "overwritten", "no picture"


def judgement_of(outcome: Result | ClipSAMError) -> dict[str, Any]:
    """Fields of `Part` for what an inspection came to."""
    if isinstance(outcome, ClipSAMError):
        reason = FAILED
        if isinstance(outcome, ImageError):
            reason = DAMAGED if isinstance(outcome, DamagedError) else UNREADABLE
        return not_judged(reason, str(outcome))
    values = outcome.to_dict()
    kept = set(COLUMNS) & set(values) - {"category"}
    known = {name: values[name] for name in kept}
    return {**known, "calibration": outcome.calibration or None, "version": version()}


def not_judged(reason: str, message: str) -> dict[str, Any]:
    """Fields of `Part` for a part without a result."""
    return {
        "verdict": NOT_JUDGED,
        "reasons": [reason],
        "message": printable(message),
        "version": version(),
    }


@cache
def version() -> str:
    """Of clipsam."""
    from clipsam.runtime import __version__

    return __version__
