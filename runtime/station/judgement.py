"""What the store keeps of a part's result, or of what it met instead of one."""

from __future__ import annotations

from functools import cache
from typing import Any

from clipsam.runtime.core.errors import ClipSAMError, ImageError
from clipsam.runtime.core.result import Result
from clipsam.runtime.station.part import NOT_JUDGED

UNREADABLE, FAILED, CRASHED = "unreadable", "failed", "crashed"
MISSING, OVERWRITTEN, NO_PICTURE = "missing", "overwritten", "no_picture"


def judgement_of(outcome: Result | ClipSAMError) -> dict[str, Any]:
    """Fields of `Part` for what an inspection came to."""
    if isinstance(outcome, ClipSAMError):
        reason = UNREADABLE if isinstance(outcome, ImageError) else FAILED
        return not_judged(reason, str(outcome))
    values = outcome.to_dict()
    kept = ("verdict", "score", "bundle", "provider", "precisions", "timings", "refined", "late")
    return {
        **{name: values[name] for name in kept},
        "limit": values.get("limit", values.get("threshold")),
        "reasons": list(values.get("reasons", ())),
        "calibration": values.get("calibration"),
        "regions": values["regions"],
        "width": outcome.width,
        "height": outcome.height,
        "version": version(),
    }


def not_judged(reason: str, message: str) -> dict[str, Any]:
    """Fields of `Part` for a part without a result."""
    return {
        "verdict": NOT_JUDGED,
        "reasons": [reason],
        "message": message,
        "version": version(),
    }


@cache
def version() -> str:
    """Of clipsam."""
    from clipsam.runtime import __version__

    return __version__
