"""What a training run leaves to look at: log.jsonl, curves.png, TensorBoard's event files.

`log.jsonl` has a line of figures a logged step; it is the record, the picture is drawn from it.
TensorBoard's files are written into `tensorboard/` when the library is installed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.images.reader import write_png

LOG, CURVES, TENSORBOARD = "log.jsonl", "curves.png", "tensorboard"
_COLOURS = ((31, 119, 180), (214, 96, 10), (44, 140, 44), (150, 50, 160), (120, 80, 60))  # RGB
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 300, 70, 20, 34, 32
_NOT_DRAWN = {"time", "step", "learning_rate"}


class TrainingLog:
    """Appends rows to a run's log; what was logged after step `start` is dropped first.

    A run that goes on from its checkpoint makes those steps again, and would log them twice.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.folder = folder
        path = folder / LOG
        if path.exists():
            kept = [row for row in read_log(path) if row.get("step", 0) <= start]
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            write_bytes(path, lines.encode())
        self._writer = _tensorboard(folder / TENSORBOARD, start)

    def add(self, row: Mapping[str, float]) -> None:
        """One row of figures; the key "step" is needed."""
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"time": round(time.time()), **row}) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(row["step"]))

    def draw(self) -> None:
        """Draw the curves of everything logged so far."""
        picture = draw_curves(read_log(self.folder / LOG))
        if picture is not None:
            write_png(self.folder / CURVES, picture)
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._writer is not None:
            self._writer.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def draw_curves(rows: Sequence[Mapping[str, float]]) -> NDArray[np.uint8] | None:
    """Losses above, scores (figures logged by validations only) below; RGB, None without rows."""
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in _NOT_DRAWN]
    if not names:
        return None
    scores = {n for n in names if any("score" in row and n in row for row in rows)}
    scores = {n for n in scores if all("score" in row for row in rows if n in row)}
    # A log that has nothing but validations says by its name what is a loss.
    scores -= {n for n in scores if "loss" in n}
    panels = [[n for n in names if n not in scores], [n for n in names if n in scores]]
    series = [{n: _points(rows, n) for n in panel} for panel in panels if panel]
    return np.vstack([_panel(curves) for curves in series])


def _points(rows: Sequence[Mapping[str, float]], name: str) -> NDArray[np.float64]:
    """[N,2] step and value, finite ones only."""
    found = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    return np.array(sorted(found), np.float64).reshape(-1, 2)


def _panel(curves: Mapping[str, NDArray[np.float64]]) -> NDArray[np.uint8]:
    picture = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    points = np.concatenate(list(curves.values()))
    if not len(points):
        return picture
    (x_0, y_0), (x_1, y_1) = points.min(axis=0), points.max(axis=0)
    x_1, y_1 = max(x_1, x_0 + 1), max(y_1, y_0 + 1e-6 + 1e-3 * abs(y_0))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = round(bottom - fraction * (bottom - _TOP)), round(_LEFT + fraction * (right - _LEFT))
        cv2.line(picture, (_LEFT, y), (right, y), (225, 225, 225), 1)
        _text(picture, f"{y_0 + fraction * (y_1 - y_0):.3g}", (6, y + 4))
        _text(picture, f"{x_0 + fraction * (x_1 - x_0):.0f}", (x - 14, _HEIGHT - 10))
    cv2.rectangle(picture, (_LEFT, _TOP), (right, bottom), (90, 90, 90), 1)
    at = _LEFT
    for number, (name, values) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        x = _LEFT + (values[:, 0] - x_0) / (x_1 - x_0) * (right - _LEFT)
        y = bottom - (values[:, 1] - y_0) / (y_1 - y_0) * (bottom - _TOP)
        line = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(picture, [line], False, colour, 2, cv2.LINE_AA)
        for px, py in line if len(line) < 60 else ():
            cv2.circle(picture, (int(px), int(py)), 3, colour, -1, cv2.LINE_AA)
        _text(picture, name, (at, 22), colour)
        at += 14 + 9 * len(name)
    _text(picture, "step", (right - 34, 22))
    return picture


def _text(
    picture: NDArray[np.uint8],
    text: str,
    at: tuple[int, int],
    colour: tuple[int, int, int] = (60, 60, 60),
) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)


def _tensorboard(folder: Path, start: int) -> Any:
    """A writer of event files, or None where the library is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Steps that will be made again are hidden in what an earlier, killed run has written.
    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)
