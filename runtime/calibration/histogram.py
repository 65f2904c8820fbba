"""The scores as a picture: good parts, planted and true defects, and the limit among them."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.images.image import Image

_WIDTH, _ROW, _LEFT, _BINS = 900, 150, 20, 60
_COLOURS = ((60, 140, 60), (70, 110, 200), (200, 60, 50))  # RGB: good, planted, defective


def draw_histogram(groups: Mapping[str, NDArray[np.float64]], limit: float, title: str) -> Image:
    """One histogram below the other on one scale; a line marks the limit. RGB uint8."""
    groups = {name: scores for name, scores in groups.items() if len(scores)}
    every = np.concatenate([*groups.values(), [limit]])
    low, high = float(every.min()), float(every.max())
    margin = 0.03 * max(high - low, 1e-3)
    low, high = low - margin, high + margin
    height = 40 + _ROW * len(groups) + 40
    picture = np.full((height, _WIDTH, 3), 255, np.uint8)
    _write(picture, title, _LEFT, 24)
    across = (_WIDTH - 2 * _LEFT) / (high - low)
    for row, ((name, scores), colour) in enumerate(zip(groups.items(), _COLOURS, strict=False)):
        base = 40 + _ROW * (row + 1)
        counts, edges = np.histogram(scores, _BINS, (low, high))
        for count, left, right in zip(counts, edges, edges[1:], strict=False):
            top = base - round((_ROW - 34) * count / counts.max())
            x0, x1 = (round(_LEFT + (edge - low) * across) for edge in (left, right))
            if count:
                cv2.rectangle(picture, (x0, top), (x1 - 1, base), colour, -1)
        cv2.line(picture, (_LEFT, base), (_WIDTH - _LEFT, base), (120, 120, 120), 1)
        above = int((scores > limit).sum())
        _write(
            picture, f"{name}: {above} of {len(scores)} above the limit", _LEFT, base - _ROW + 24
        )
    x = round(_LEFT + (limit - low) * across)
    cv2.line(picture, (x, 44), (x, height - 40), (0, 0, 0), 2)
    _write(picture, f"limit {limit:.3f}", min(x - 30, _WIDTH - 110), height - 20)
    return picture


def _write(picture: Image, text: str, x: int, y: int) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
