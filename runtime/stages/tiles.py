"""Tiles: overlapping windows of a large picture, each looked at by itself, blended into one map.

CLIP sees a picture at its own small size. In a window less of it has to fit there, so smaller
defects are seen; the look at the whole stays beside them, for what is only wrong as a whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import OptionError

OFF, AUTO = "off", "auto"
MOST = 64  # windows, however large the picture
OVERLAP = 0.25  # of a window's side, with the next one
AUTO_MOST = 9  # windows that `auto` spends at most: the time of a part is bounded by them
AUTO_TOKEN = 8.0  # pixels of the image a side that one of CLIP's tokens may cover
AUTO_SLACK = 1.2  # times as many where that takes too many windows, if fewer windows do it

Map = NDArray[np.float32]


def check_tiles(option: str) -> str:
    """The option as it is written: "off", "auto" or "3x2" (columns x rows). Raises OptionError."""
    if option in (OFF, AUTO):
        return option
    found = re.fullmatch(r"([1-9]\d{0,2})[xX]([1-9]\d{0,2})", str(option))
    if found is None or int(found[1]) * int(found[2]) > MOST:
        raise OptionError(
            f"tiles={option!r} must be off, auto, or columns and rows such as 3x2, {MOST} tiles "
            "at most."
        )
    columns, rows = int(found[1]), int(found[2])
    return OFF if columns == rows == 1 else f"{columns}x{rows}"


@dataclass(frozen=True)
class Axis:
    """Windows of one length along a side of the picture, the first at its start, the last at its
    end."""

    side: int
    windows: int

    @property
    def length(self) -> int:
        """Length of every window, in pixels."""
        return math.ceil(self.side / (self.windows - (self.windows - 1) * OVERLAP))

    @property
    def starts(self) -> list[int]:
        """Where every window begins, in pixels."""
        steps = max(1, self.windows - 1)
        return [round(i * (self.side - self.length) / steps) for i in range(self.windows)]

    def weights(self) -> list[Map]:
        """The weights of every window's pixels: Hann, and together 1 at every pixel of the side."""
        middle = (np.arange(self.length) + 0.5) / self.length
        hann = np.sin(np.pi * middle) ** 2
        total = np.zeros(self.side)
        for start in self.starts:
            total[start : start + self.length] += hann
        return [
            np.asarray(hann / total[start : start + self.length], np.float32)
            for start in self.starts
        ]


@dataclass(frozen=True)
class Grid:
    """The windows of a picture, row by row."""

    across: Axis
    down: Axis

    def __len__(self) -> int:
        return self.across.windows * self.down.windows

    def __str__(self) -> str:
        return f"{self.across.windows}x{self.down.windows}" if len(self) > 1 else OFF

    @property
    def share(self) -> float:
        """A window's share of the picture's area."""
        return self.across.length * self.down.length / (self.across.side * self.down.side)

    def windows(self) -> Iterator[tuple[slice, slice]]:
        """(rows, columns) of every window."""
        for top, left in product(self.down.starts, self.across.starts):
            yield slice(top, top + self.down.length), slice(left, left + self.across.length)

    def blend(self, maps: Map) -> Map:
        """The map [H,W] of the picture from the maps [n,S,S] of its windows."""
        total = np.zeros((self.down.side, self.across.side), np.float32)
        weights = product(self.down.weights(), self.across.weights())
        for small, (rows, columns), (high, wide) in zip(maps, self.windows(), weights, strict=True):
            size = (self.across.length, self.down.length)
            part = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR), np.float32)
            part *= high[:, None]
            part *= wide
            total[rows, columns] += part
        return total


def choose_grid(option: str, shape: tuple[int, ...], clip_size: int, tokens: int) -> Grid:
    """The grid for a picture of this shape [H,W,...]; one window where there is nothing to tile.

    `option` is that of `check_tiles`, `clip_size` the side of CLIP's input, `tokens` how many of
    them lie along it. No window is smaller than CLIP's input, whatever is asked for: enlarged, it
    shows nothing new. "auto" takes the fewest tiles in which a token covers `AUTO_TOKEN` pixels
    at most or, where `AUTO_MOST` tiles do not reach that, the fewest within `AUTO_SLACK` of the
    finest that they reach.
    """
    height, width = shape[:2]
    across = [Axis(width, n) for n in range(1, _most(width, clip_size) + 1)]
    down = [Axis(height, n) for n in range(1, _most(height, clip_size) + 1)]
    if option == OFF:
        return Grid(across[0], down[0])
    if option != AUTO:
        columns, rows = (int(number) for number in option.split("x"))
        return Grid(across[min(columns, len(across)) - 1], down[min(rows, len(down)) - 1])
    grids = [Grid(a, d) for a, d in product(across, down) if len(Grid(a, d)) <= AUTO_MOST]

    def covered(grid: Grid) -> float:
        return max(grid.across.length, grid.down.length) / tokens

    finest = min(map(covered, grids))
    enough = AUTO_TOKEN if finest <= AUTO_TOKEN else AUTO_SLACK * finest
    fine = [grid for grid in grids if covered(grid) <= enough]
    return min(fine, key=lambda grid: (len(grid), covered(grid)))


def _most(side: int, clip_size: int) -> int:
    """Windows along a side that are at least `clip_size` long."""
    fitting = (n for n in range(MOST, 1, -1) if Axis(side, n).length >= clip_size)
    return next(fitting, 1)


def fuse_looks(rough: Map, maps: Map, grid: Grid) -> None:
    """Bring the tiles' maps [n,S,S] into the map [H,W] of the whole, in place.

    The geometric mean: a place is as anomalous as both say. (docs/large_pictures.md has the
    figures of the others.)
    """
    rough *= grid.blend(maps)
    np.sqrt(rough, out=rough)
