"""Contact sheets: what the method saw and did, a row an image.

Columns: image, ground truth, rough map O_f, prompts (boxes and points), final map, result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.overlay import overlay
from clipsam.runtime.images.reader import write_png
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts

COLUMNS = ("image", "ground truth", "rough map", "prompts", "final map", "result")
TILE = 224  # side of a picture
ROWS = 16

_BOX, _POINT = (80, 255, 80), (255, 80, 80)  # RGB


def contact_row(
    image: Image,
    truth: NDArray[Any],
    rough: NDArray[np.float32],
    options: PromptOptions,
    result: Result,
) -> Image:
    """A row of the sheet: image HxWx3, truth HxW (not 0: defective), rough map HxW in [0,1]."""
    grays = [truth != 0, rough, result.score_map]
    mask, rough_shown, final = (_gray(g) for g in grays)
    pictures = [
        image, mask, rough_shown, _with_prompts(image, rough, options), final,
        overlay(image, result),
    ]  # fmt: skip
    return np.hstack([cv2.resize(p, (TILE, TILE), interpolation=cv2.INTER_AREA) for p in pictures])


def with_final(row: Image, final: NDArray[np.float32]) -> Image:
    """The row with another final map, [TILE,TILE] in [0,1], drawn in its place."""
    column = COLUMNS.index("final map")
    changed: Image = row.copy()
    changed[:, column * TILE : (column + 1) * TILE] = _gray(final)
    return changed


def small_map(final: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map [H,W] at a tile's size."""
    return np.asarray(cv2.resize(final, (TILE, TILE), interpolation=cv2.INTER_AREA), np.float32)


def write_sheet(path: Path, rows: Sequence[Image]) -> None:
    """The rows under a line of column names, as PNG."""
    head = np.full((24, TILE * len(COLUMNS), 3), 255, np.uint8)
    for number, name in enumerate(COLUMNS):
        at = (number * TILE + 6, 17)
        cv2.putText(head, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    write_png(path, np.vstack([head, *rows]))


def sheet_indices(groups: Sequence[str]) -> set[int]:
    """Which of the images, given each one's group, the sheet shows: as many of every group."""
    names = sorted(set(groups))
    each = max(1, ROWS // max(1, len(names)))
    chosen: set[int] = set()
    for name in names:
        members = [i for i, group in enumerate(groups) if group == name]
        pick = np.linspace(0, len(members) - 1, min(each, len(members))).round().astype(int)
        chosen |= {members[i] for i in pick}
    return chosen


def _gray(values: NDArray[Any]) -> Image:
    levels = (np.clip(values.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB), np.uint8)


def _with_prompts(image: Image, rough: NDArray[np.float32], options: PromptOptions) -> Image:
    """The image with SAM's boxes and points, thick enough to survive the tile's size."""
    picture = np.ascontiguousarray(image.copy())
    prompts = find_prompts(rough, options)
    thick = max(1, round(max(image.shape[:2]) / TILE))
    for box, points in zip(prompts.boxes, prompts.points, strict=True):
        left, top, right, bottom = (int(v) for v in box)
        cv2.rectangle(picture, (left, top), (right, bottom), _BOX, thick)
        for x, y in points:
            cv2.circle(picture, (int(x), int(y)), 2 * thick, _POINT, -1)
    return picture
