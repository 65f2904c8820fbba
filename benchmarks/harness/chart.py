"""A bar for every row and part: the median, with a line up to the 99th percentile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Bar = tuple[str, float, float]  # what it is, p50 and p99 (or another upper end) in milliseconds

_WIDTH, _LEFT, _RIGHT, _TOP, _LINE = 1200, 420, 150, 60, 26
_INK, _GRID, _WHISKER = (40, 40, 40), (225, 225, 225), (60, 60, 200)
_COLOURS = ((120, 170, 90), (200, 140, 70))  # of every other bar: good parts, defective parts


def draw_chart(bars: Sequence[Bar], title: str, upper: str = "p99") -> NDArray[np.uint8]:
    """The chart, uint8 [H,W,3] BGR, times on a logarithmic axis. `bars` must not be empty;
    `upper` is what their upper end is called."""
    low = 10 ** math.floor(math.log10(min(p50 for _, p50, _ in bars)))
    high = 10 ** math.ceil(math.log10(max(p99 for _, _, p99 in bars) * 1.001))
    height = _TOP + _LINE * (len(bars) + 2)
    chart = np.full((height, _WIDTH, 3), 255, np.uint8)

    def across(value: float) -> int:
        share = math.log(value / low) / math.log(high / low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT))

    def write(text: str, x: int, y: int, size: float = 0.45) -> None:
        cv2.putText(chart, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)

    write(title, 12, 28, 0.55)
    foot = height - _LINE
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        x = across(10.0**power)
        cv2.line(chart, (x, _TOP - 12), (x, foot), _GRID, 1)
        write(f"{10.0**power:g} ms", x - 14, foot + 17)
    for number, (name, p50, p99) in enumerate(bars):
        y = _TOP + _LINE * number
        cv2.rectangle(chart, (_LEFT, y), (across(p50), y + 16), _COLOURS[number % 2], cv2.FILLED)
        cv2.line(chart, (across(p50), y + 8), (across(p99), y + 8), _WHISKER, 2)
        write(name, 12, y + 13)
        write(f"{p50:,.2f}, {upper} {p99:,.2f}", across(p99) + 8, y + 13)
    return chart


def write_chart(path: Path, bars: Sequence[Bar], title: str, upper: str = "p99") -> None:
    """Write the chart as a PNG; raises OSError."""
    done, encoded = cv2.imencode(".png", draw_chart(bars, title, upper))
    if not done:
        raise OSError(f"OpenCV could not encode {path.name}.")
    path.write_bytes(encoded.tobytes())
