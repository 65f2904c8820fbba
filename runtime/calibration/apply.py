"""A calibration at work: what it adds to a score, and whether a part may be called good."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.picture import comparable, obvious_reasons, picture_facts, reasons_of


class Compared(NamedTuple):
    """A part beside the good ones: what to add to its score, its largest distance from them (None
    without reference parts), and why it may not be called good.

    To the score of a picture that cannot be compared nothing is added, so that a lamp that went out
    is `not_judged` and no defect, unless the map says so.
    """

    added: float
    distance: float | None
    reasons: tuple[str, ...]


def compare(
    calibration: Calibration | None, view: Image, tokens: NDArray[np.float16] | None
) -> Compared:
    """`view` is HxWx3 uint8 RGB, `tokens` its own, where the calibration has reference parts."""
    obvious = obvious_reasons(view)
    if calibration is None:
        return Compared(0.0, None, obvious)
    facts, largest, weight = picture_facts(view), None, 0.0
    if calibration.reference is not None and tokens is not None:
        largest, facts["distance"] = calibration.reference.distance(tokens)
        weight = calibration.reference.weight
    reasons = obvious or reasons_of(facts, calibration.bounds)
    added = weight * largest if largest is not None and comparable(reasons) else 0.0
    return Compared(added, largest, reasons)


def word(calibration: Calibration | None, category: str | None) -> str:
    """The category that is meant: a calibration has one of its own. Raises OptionError."""
    if calibration is None:
        return "object" if category is None else category
    if category not in (None, calibration.category):
        raise OptionError(
            f"The calibration was made for {calibration.category!r}, not {category!r}: leave the "
            "category out, or calibrate for this one."
        )
    return calibration.category
