"""The final map: the rough map plus every mask weighted by its score, normalised (Eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.segment import Masks

NORMS = ("fixed", "image")


@dataclass(frozen=True)
class FusionOptions:
    """How Eq. 9 is normalised; part of the bundle's manifest."""

    norm: str = "fixed"  # see `normalise`

    def __post_init__(self) -> None:
        check_norm(self.norm)


def check_norm(norm: str) -> None:
    """Raise ValueError if `norm` is not one of `NORMS`."""
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} must be one of {', '.join(NORMS)}")


def fuse(rough: NDArray[np.float32], masks: Masks | None) -> NDArray[np.float32]:
    """O_f + sum of m x s over all boxes and masks, float32 [H,W], not yet normalised.

    Without masks (no box, or no time for SAM) this is O_f: Eq. 9 for q = 0.
    """
    total = np.array(rough, np.float32)
    if masks is not None:
        for mask, score in masks.binary():
            np.add(total, np.float32(score), out=total, where=mask)
    return total


def fixed_scale(total: NDArray[np.float32], masks_per_box: int) -> NDArray[np.float32]:
    """clip(total / (1 + masks per box), 0, 1): one scale for every image (/ 4 in the paper)."""
    return np.asarray(np.clip(total / np.float32(1 + masks_per_box), 0, 1), np.float32)


def image_scale(total: NDArray[np.float32]) -> NDArray[np.float32]:
    """Min-max within the image: for comparison with published pictures; good parts glow."""
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - np.float32(low)) / np.float32(max(high - low, 1e-12)), np.float32)
