"""The final map: the rough map plus every mask weighted by its score, normalised (Eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.stages.sam import Masks
from clipsam.runtime.stages.zoom import CropMasks

NORMS = ("fixed", "image")


@dataclass(frozen=True)
class FusionOptions:
    """How Eq. 9 is normalised; part of the bundle's manifest."""

    norm: str = "fixed"  # "fixed" or "image": see `fixed_scale` and `image_scale`
    # What a mask's score is multiplied by before it is added (paper: 1). A SAM that draws worse
    # than CLIP and UMCI gets less; it is chosen where masks are known, never on the box.
    mask_weight: float = 1.0
    # The same of masks that were drawn in crops (`zoom.py`), where SAM sees more; 0: mask_weight.
    # The scale stays mask_weight's, so that a place of a part reads the same with zoom or without.
    crop_mask_weight: float = 0.0

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if not 0 <= self.mask_weight <= 1 or not 0 <= self.crop_mask_weight <= 1:
            raise ValueError("mask_weight and crop_mask_weight must lie in [0,1]")

    def weight(self, cropped: bool) -> float:
        """What masks are multiplied by that were drawn in crops, or in the whole image."""
        return (self.crop_mask_weight or self.mask_weight) if cropped else self.mask_weight


def check_norm(norm: str) -> None:
    """Raise OptionError if `norm` is not one of `NORMS`."""
    if norm not in NORMS:
        raise OptionError(f"norm={norm!r} must be one of {', '.join(NORMS)}.")


def fuse(
    rough: NDArray[np.float32], masks: Masks | CropMasks | None, weight: float = 1.0
) -> NDArray[np.float32]:
    """O_f + sum of m x s x weight over all boxes and masks, float32 [H,W], not yet normalised.

    Without masks (no box, or no time for SAM) this is O_f: Eq. 9 for q = 0.
    """
    total = np.array(rough, np.float32)
    if masks is not None:
        for window, score in masks.windows():
            value = score * weight  # m x s
            _, weighted = cv2.threshold(window.logits, 0, value, cv2.THRESH_BINARY)
            part = total[window.rows, window.columns]
            np.add(part, weighted, out=part)
    return total


def fixed_scale(
    total: NDArray[np.float32], masks_per_box: int, weight: float = 1.0
) -> NDArray[np.float32]:
    """clip(total / (1 + weight x masks per box), 0, 1): one scale for every image (/ 4 with the
    paper's weight of 1)."""
    final = np.asarray(total / np.float32(1 + weight * masks_per_box), np.float32)
    return np.clip(final, 0, 1, out=final)


def image_scale(total: NDArray[np.float32]) -> NDArray[np.float32]:
    """Min-max within the image: for comparison with published pictures; good parts glow."""
    low, high = float(total.min()), float(total.max())
    scaled = np.asarray(total - np.float32(low), np.float32)
    scaled /= np.float32(max(high - low, 1e-12))
    return scaled


def on_scale(
    level: float, total: NDArray[np.float32], norm: str, masks_per_box: int, weight: float
) -> float:
    """Where a level of the rough map lies on the scale that `total` [H,W] is returned in."""
    if norm == "fixed":
        return level / (1 + weight * masks_per_box)
    low, high = float(total.min()), float(total.max())
    return (level - low) / max(high - low, 1e-12)
