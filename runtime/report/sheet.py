"""The contact sheet: the worst parts of a run in one picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.core.result import ANOMALOUS, NOT_JUDGED
from clipsam.runtime.images.caption import FAINT, PAPER, VERDICT_COLOURS, ascii_of, fitted, put
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.thumbnail import shrink
from clipsam.runtime.report.parts import Part, Progress, Run, worst_first
from clipsam.runtime.report.pictures import heat, shown_of

COLUMNS, ROWS = 6, 8
TILE = 240  # side of a picture, pixels
SHEET_SUFFIXES = (".jpg", ".jpeg", ".png")
_GAP, _WORDS, _HEAD = 12, 46, 44


def write_sheet(path: Path, run: Run, progress: Progress = lambda done, total: None) -> int:
    """Write the worst parts, at most COLUMNS x ROWS, as JPEG or PNG by the suffix; how many.

    Raises OutputError.
    """
    chosen = worst_first(run.parts)[: COLUMNS * ROWS]
    columns = min(COLUMNS, max(3, len(chosen)))
    rows = -(-len(chosen) // columns)
    width = _GAP + columns * (TILE + _GAP)
    sheet = np.full((_HEAD + rows * (TILE + _WORDS + _GAP), width, 3), PAPER, np.uint8)
    verdicts = Counter(part.verdict for part in run.parts)
    counts = f"{len(run.parts)} parts, {verdicts[ANOMALOUS]} anomalous"
    if verdicts[NOT_JUDGED]:
        counts += f", {verdicts[NOT_JUDGED]} not judged"
    head = f"{ascii_of(run.title)}: {counts}; the {len(chosen)} worst"
    put(sheet, fitted(head, width - 2 * _GAP, 1.3), (_GAP, 28), 1.3)
    for position, index in enumerate(chosen):
        row, column = divmod(position, columns)
        y, x = _HEAD + row * (TILE + _WORDS + _GAP), _GAP + column * (TILE + _GAP)
        part = run.parts[index]
        sheet[y : y + TILE, x : x + TILE] = _tile(part)
        put(sheet, fitted(ascii_of(part.name), TILE, 0.9), (x, y + TILE + 16), 0.9)
        colour = VERDICT_COLOURS.get(part.verdict, FAINT)
        put(sheet, _words(part), (x, y + TILE + 36), 0.9, colour)
        progress(position + 1, len(chosen))
    done, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        raise OutputError(f"{path} could not be encoded as {path.suffix}.")
    write_bytes(path, data.tobytes())
    return len(chosen)


def _words(part: Part) -> str:
    if part.score is None:
        return fitted(ascii_of(", ".join(("not judged", *part.reasons))), TILE, 0.9)
    score = f"{part.verdict.replace('_', ' ')}  {part.score:.3f}"
    return score if part.limit is None else f"{score}, limit {part.limit:.3f}"


def _tile(part: Part) -> Image:
    """Picture and map, [TILE,TILE,3], the picture's shape kept."""
    tile = np.full((TILE, TILE, 3), 226, np.uint8)
    image, scores = shown_of(part)
    if image is None:
        put(tile, "no picture", (TILE / 2 - 34, TILE / 2), 1, FAINT)
        return tile
    small = np.asarray(shrink(image, TILE), np.float64)
    height, width = small.shape[:2]
    if scores is not None:
        layer = cv2.resize(heat(scores, part.map_limit, TILE), (width, height)).astype(np.float64)
        strength = layer[..., 3:] / 255
        small = small * (1 - strength) + layer[..., 2::-1] * strength
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile
