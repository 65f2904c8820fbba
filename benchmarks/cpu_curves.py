"""Curves of how the cost grows: a panel for every sweep, both axes logarithmic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Curve = Sequence[tuple[float, float]]  # (x, milliseconds)

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1200, 420, 90, 330, 50, 50
_INK, _GRID = (40, 40, 40), (225, 225, 225)
_COLOURS = (
    (60, 60, 200), (120, 170, 90), (200, 140, 70), (160, 60, 160), (60, 160, 220), (90, 90, 90),
)  # fmt: skip


def draw_curves(panels: Mapping[str, Mapping[str, Curve]]) -> NDArray[np.uint8]:
    """One panel under another, uint8 [H,W,3] BGR: title -> name of a curve -> its points.

    A zero on the x axis (no boxes) stands where a half would.
    """
    return np.concatenate([_panel(title, curves) for title, curves in panels.items()])


def write_curves(path: Path, panels: Mapping[str, Mapping[str, Curve]]) -> None:
    """Write the panels as a PNG; raises OSError."""
    done, encoded = cv2.imencode(".png", draw_curves(panels))
    if not done:
        raise OSError(f"OpenCV could not encode {path.name}.")
    path.write_bytes(encoded.tobytes())


def _panel(title: str, curves: Mapping[str, Curve]) -> NDArray[np.uint8]:
    panel = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    points = [point for curve in curves.values() for point in curve]
    xs = sorted({x for x, _ in points})
    low, high = (f(y for _, y in points) for f in (min, max))
    floor, ceiling = math.floor(math.log10(low)), math.ceil(math.log10(high * 1.001))
    first, last = _log(xs[0]), max(_log(xs[-1]), _log(xs[0]) + 1e-9)

    def place(x: float, y: float) -> tuple[int, int]:
        across = (_log(x) - first) / (last - first)
        up = (math.log10(y) - floor) / (ceiling - floor)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT)),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)),
        )

    def write(text: str, x: int, y: int, colour: tuple[int, int, int] = _INK) -> None:
        cv2.putText(panel, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)

    write(title, 12, 24)
    for power in range(floor, ceiling + 1):
        y = place(xs[0], 10.0**power)[1]
        cv2.line(panel, (_LEFT, y), (_WIDTH - _RIGHT, y), _GRID, 1)
        write(f"{10.0**power:g} ms", 10, y + 4)
    for x in xs:
        write(f"{x:g}", place(x, 10.0**floor)[0] - 8, _HEIGHT - _BOTTOM + 22)
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [place(x, y) for x, y in sorted(curve)]
        for start, end in itertools.pairwise(placed):
            cv2.line(panel, start, end, colour, 2, cv2.LINE_AA)
        for point in placed:
            cv2.circle(panel, point, 4, colour, cv2.FILLED, cv2.LINE_AA)
        write(name, _WIDTH - _RIGHT + 20, _TOP + 20 + 20 * number, colour)
    return panel


def _log(x: float) -> float:
    return math.log10(x if x > 0 else 0.5)
