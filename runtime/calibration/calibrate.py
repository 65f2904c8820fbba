"""From pictures of good parts to a calibration: the order of the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.calibration.bounds import (
    false_alarm_bound,
    limit_of,
    most_above,
    parts_needed,
    recall_bounds,
)
from clipsam.runtime.calibration.duplicates import first_of_each, thumbnail
from clipsam.runtime.calibration.expected import Example, plant_examples, tables
from clipsam.runtime.calibration.judgeable import bounds_of
from clipsam.runtime.calibration.observed import Observed
from clipsam.runtime.calibration.record import Bounds, Calibration, Promise
from clipsam.runtime.calibration.scores import (
    Measured,
    balanced_weight,
    choose_reference,
    clearly_worse,
    measure_good,
    measure_other,
    placements,
)
from clipsam.runtime.core.errors import CalibrationError, ImageError, OptionError
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.stages.picture import comparable, obvious_reasons, reasons_of

LEAST = 8  # good parts, below which nothing is said
_HELD = 24  # pictures at most that are kept in memory to plant on

Scores = NDArray[np.float64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What is asked of a calibration.

    Raises OptionError for shares that are none.

    Attributes:
      false_alarms: share of good parts that may be called anomalous, at most; None: as small a
        one as the parts can promise.
      confidence: of that promise.
      reference: good parts whose tokens are kept; 0: none.
      planted: defects drawn to estimate what will be found.
    """

    false_alarms: float | None = 0.01
    confidence: float = 0.95
    reference: int = 16
    planted: int = 60

    def __post_init__(self) -> None:
        for name in ("false_alarms", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise OptionError(f"{name}={value!r} must lie between 0 and 1.")


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What came of it.

    Attributes:
      calibration: to be written.
      scores: of the good parts, the planted and the true defects, by these names.
      examples: the planted defects, in the order of `scores["planted"]`.
      found: bool, which of them the limit finds.
      skipped: a sentence for every picture that was left out.
    """

    calibration: Calibration
    scores: Mapping[str, Scores]
    examples: Sequence[Example]
    found: NDArray[np.bool_]
    skipped: Sequence[str] = field(default=())


def calibrate(
    observe: Callable[[Image], Observed],
    good: Sequence[Path],
    defective: Sequence[Path],
    wanted: Wanted,
    made_with: Calibration,
    where: Callable[[Image], NDArray[np.bool_] | None] = lambda image: None,
    progress: Progress = lambda what, done, total: None,
) -> Calibrated:
    """Look at every good part, and find limit, bounds and reference.

    `made_with` names bundle, category and settings (`options.to_calibrate`). A picture that cannot
    be read or shows nothing is left out and named in `skipped`. Raises CalibrationError when the
    parts are too few for what is wanted, ImageError for a picture that the settings do not fit.
    """
    _check_number(len(good), 0, wanted)  # before minutes are spent
    skipped: list[str] = []
    thumbnails, seen, sources = [], [], []
    for path, image in _read(good, skipped):
        thumbnails.append(thumbnail(image))
        seen.append(_seen(observe, path, image))
        sources.append(path)
        progress("good parts", len(seen) + len(skipped), len(good))
    kept = first_of_each(thumbnails)
    duplicates, parts = len(seen) - len(kept), [seen[i] for i in kept]
    above = _check_number(len(parts), duplicates, wanted)

    # Half of the parts at most, so that there are others to plant on.
    count = min(wanted.reference, len(parts) // 2)
    reference = choose_reference(parts, count) if count else None
    measured = measure_good(parts, reference) if reference else _by_map(parts)
    own = set(reference.parts.tolist()) if reference else set()
    free = [sources[index] for part, index in enumerate(kept) if part not in own]
    held = [image for _, image in _read(free[:: -(-len(free) // _HELD)], skipped)]
    if not held:
        raise CalibrationError("The good parts' pictures are gone: leave them until it has ended.")
    examples = []
    for number, example in enumerate(plant_examples(held, observe, wanted.planted, where), start=1):
        if example is not None:
            examples.append(example)
        progress("planted defects", number, wanted.planted)
    planted_seen = [example.seen for example in examples]
    planted = measure_other(planted_seen, reference) if reference else _by_map(planted_seen)

    ranks: dict[str, float] = {}
    if reference is not None:
        weight = balanced_weight(measured)
        without = placements(measured.scores(0), planted.scores(0))
        beside = placements(measured.scores(weight), planted.scores(weight))
        if examples:
            ranks = {"map": without.mean(), "map and reference": beside.mean()}
            ranks = {name: round(float(value), 4) for name, value in ranks.items()}
        reference = replace(reference, weight=0.0 if clearly_worse(without, beside) else weight)
    weight = reference.weight if reference else 0.0
    scores = measured.scores(weight)
    limit = limit_of(scores, above)

    facts = [dict(part.facts) for part in parts]
    if reference is not None:
        for fact, typical in zip(facts, measured.typical, strict=True):
            fact["distance"] = float(typical)
    bounds = bounds_of(facts)
    promise = Promise(
        false_alarm_bound(len(parts), above, wanted.confidence),
        wanted.confidence,
        len(parts),
        above,
        duplicates,
    )
    true = []
    for number, (path, image) in enumerate(_read(defective, skipped), start=1):
        true.append(_seen(observe, path, image))
        progress("defective parts", number, len(defective))
    others = measure_other(true, reference) if reference else _by_map(true)
    true_scores, unlike = _as_inspected(true, others, weight, bounds)
    planted_scores, _ = _as_inspected(planted_seen, planted, weight, bounds)
    found = planted_scores > limit
    side = min(held[0].shape[:2])
    notes: dict[str, Any] = {
        "asked": {"false_alarms": wanted.false_alarms, "reference": wanted.reference},
        "planted": {
            "found": int(found.sum()),
            "of": len(found),
            **tables(examples, found, side, made_with.settings.get("mm_per_pixel")),
        },
        "auroc_on_planted": ranks,
        # What `clipsam watch` compares recent scores with, thinned out where there are many.
        "good_scores": np.sort(scores)[:: 1 + len(scores) // 2000].round(6).tolist(),
    }
    if true:
        caught = int((true_scores > limit).sum())
        low, high = recall_bounds(caught, len(true), wanted.confidence)
        notes["defective"] = {
            "found": caught,
            "of": len(true),
            "not_judged": int((unlike & (true_scores <= limit)).sum()),
            "recall": [low, high],
            "auroc": float(placements(scores, true_scores).mean()),
        }
    calibration = replace(
        made_with, limit=limit, promise=promise, bounds=bounds, reference=reference, notes=notes
    )
    groups = {"good": scores, "planted": planted_scores, "defective": true_scores}
    return Calibrated(calibration, groups, examples, found, skipped)


def _read(paths: Sequence[Path], skipped: list[str]) -> Iterator[tuple[Path, Image]]:
    """Every picture that shows something; of the others a sentence in `skipped`."""
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            skipped.append(str(error))
            continue
        if reasons := obvious_reasons(image):
            skipped.append(f"{path} is {reasons[0]}: it shows no part.")
            continue
        yield path, image


def _seen(observe: Callable[[Image], Observed], path: Path, image: Image) -> Observed:
    """`observe`, whose errors name the picture."""
    try:
        return observe(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _by_map(parts: Sequence[Observed]) -> Measured:
    """Without reference parts."""
    zeros = np.zeros(len(parts))
    return Measured(np.array([part.score for part in parts], np.float64), zeros, zeros)


def _as_inspected(
    parts: Sequence[Observed], measured: Measured, weight: float, bounds: Bounds
) -> tuple[Scores, NDArray[np.bool_]]:
    """The parts' scores as an inspection finds them, and which are unlike good parts (`apply`)."""
    reasons = [
        reasons_of({**part.facts, "distance": typical}, bounds)
        for part, typical in zip(parts, measured.typical, strict=True)
    ]
    compared = np.array([comparable(found) for found in reasons], np.bool_)
    unlike = np.array([bool(found) for found in reasons], np.bool_)
    return np.where(compared, measured.scores(weight), measured.map), unlike


def _check_number(parts: int, duplicates: int, wanted: Wanted) -> int:
    """How many of the good parts may score above the limit. Raises CalibrationError."""
    rate = wanted.false_alarms
    twice = f" ({duplicates} more show a part that was seen already)" if duplicates else ""
    have = f"{parts} good part{'s' * (parts != 1)}{twice}"
    if rate is None:
        if parts < LEAST:
            raise CalibrationError(
                f"{have}: too few to say anything. Give at least {LEAST}, better 60."
            )
        return 0
    above = most_above(parts, rate, wanted.confidence) if parts >= LEAST else None
    if above is not None:
        return above
    needed = max(LEAST, parts_needed(rate, wanted.confidence))
    asked = f"{100 * rate:g} % false alarms at {100 * wanted.confidence:g} %"
    if parts < LEAST:
        raise CalibrationError(
            f"{have}: too few to say anything. Give at least {LEAST}, and {needed} for {asked} "
            "confidence."
        )
    supported = math.ceil(1000 * false_alarm_bound(parts, 0, wanted.confidence)) / 1000
    raise CalibrationError(
        f"{have} cannot promise {asked} confidence, which takes {needed}: give more, or ask for "
        f"what they support, --false-alarms {supported:g}."
    )
