"""The scores of good parts, each as if it had not been seen: what a limit is read from.

Reference parts are drawn at random, without a look at any score. A part among them is compared with
the others alone, never with itself, so its distance comes out a little larger than a new part's
would: the limit errs on the side of fewer false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.calibration.coreset import make_reference
from clipsam.runtime.calibration.observed import Observed
from clipsam.runtime.stages.reference import Reference

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measured:
    """Parts as a limit sees them, one entry each.

    Attributes:
      map: the map's score.
      largest: largest distance from the reference parts.
      typical: median distance of its tokens.
    """

    map: Scores
    largest: Scores
    typical: Scores

    def scores(self, weight: float) -> Scores:
        """The scores, with the distances weighted so."""
        return self.map + weight * self.largest


def choose_reference(good: Sequence[Observed], parts: int, seed: int = 0) -> Reference:
    """`parts` of the good parts, drawn at random; their indices are `Reference.parts`' values."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(good), min(parts, len(good)), replace=False))
    reference = make_reference([good[i].tokens for i in chosen], seed)
    return replace(reference, parts=chosen[reference.parts].astype(np.int32))


def measure_good(good: Sequence[Observed], reference: Reference) -> Measured:
    """The good parts, of which the reference was made."""
    own = set(reference.parts.tolist())
    return _measured(
        good,
        [
            reference.distance(one.tokens, leave_out=i if i in own else None)
            for i, one in enumerate(good)
        ],
    )


def measure_other(parts: Sequence[Observed], reference: Reference) -> Measured:
    """Parts that the reference was not made of."""
    return _measured(parts, [reference.distance(part.tokens) for part in parts])


def balanced_weight(good: Measured) -> float:
    """The weight at which distances differ among good parts as much as the maps' scores do."""
    return float(good.map.std() / max(good.largest.std(), 1e-6))


def placements(good: Scores, other: Scores) -> Scores:
    """For each of `other` the share of good parts that it scores above, ties half; their mean is
    the AUROC."""
    above = (other[:, None] > good).mean(axis=1) + (other[:, None] == good).mean(axis=1) / 2
    return np.asarray(above, np.float64)


def clearly_worse(one: Scores, other: Scores) -> bool:
    """Whether `other` places the same parts lower than `one` by more than chance does: by two
    standard errors of the mean difference."""
    if len(one) < 2:
        return False
    change = other - one
    return bool(change.mean() + 2 * change.std(ddof=1) / len(change) ** 0.5 < 0)


def _measured(parts: Sequence[Observed], far: Sequence[tuple[float, float]]) -> Measured:
    largest, typical = np.array(far, np.float64).reshape(-1, 2).T
    return Measured(np.array([part.score for part in parts], np.float64), largest, typical)
