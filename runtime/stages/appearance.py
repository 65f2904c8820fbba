"""How a region looks in the picture beside its surroundings, in a dozen numbers.

Tokens say what is there; whether it is darker or brighter, sharper or smoother than what surrounds
it, the pixels of these tokens say more plainly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.images.image import Image

F32 = NDArray[np.float32]

APPEARANCE = 12
_LEAST = 0.01  # of a spread, on a scale of 0 to 1


@dataclass(frozen=True, eq=False)
class Cells:
    """A picture by its tokens, for all of its regions: float32 [grid * grid, pixels of a token].

    Attributes:
      picture: CLIP's input, uint8 [S,S,3] RGB.
      grid: tokens a side.
      grey: 0 to 1; steep, fine: the size of its first and second derivatives.
      colour: what red, green and blue differ from it.
      place: x and y in pixels.
    """

    picture: Image
    grid: int
    grey: F32
    steep: F32
    fine: F32
    colour: tuple[F32, ...]
    place: tuple[F32, ...]

    @classmethod
    def of(cls, picture: Image, grid: int) -> Cells:
        """Of CLIP's input [S,S,3], uint8 RGB."""
        size = picture.shape[0]
        cell = size // grid

        def cells(field: NDArray[Any]) -> F32:
            parts = field.astype(np.float32).reshape(grid, cell, grid, cell)
            return np.asarray(parts.transpose(0, 2, 1, 3).reshape(grid**2, -1), np.float32)

        values = picture.astype(np.float32) / np.float32(255)
        grey = values.mean(axis=2)
        steep = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 4
        fine = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
        colour = tuple(cells(values[..., c] - grey) for c in range(3))
        ys, xs = np.mgrid[:size, :size]
        place = cells(xs), cells(ys)
        return cls(picture, grid, cells(grey), cells(steep), cells(fine), colour, place)


def appearance(cells: Cells, index: NDArray[np.intp], inside: NDArray[np.bool_], share: F32) -> F32:
    """float32 [APPEARANCE] of a region.

    The region is the tokens `index` [n] that are `inside`, by the share [n] that it covers of each;
    the other tokens surround it. All numbers lie within about -2 and 2.
    """

    def of(field: F32) -> tuple[F32, F32]:
        """A field's values within and around, [tokens * pixels] each."""
        own = field[index]
        around = own[~inside] if not inside.all() else own
        return own[inside].ravel(), around.ravel()

    weight = np.repeat(np.maximum(share[inside], np.float32(1e-3)), cells.grey.shape[1])
    weight /= weight.sum()
    within, around = of(cells.grey)
    middle, spread = float(np.median(around)), float(around.std()) + _LEAST
    low, mean, high = (float(np.quantile(within, q)) - middle for q in (0.05, 0.5, 0.95))
    own_spread = float(np.sqrt(weight @ (within - weight @ within) ** 2)) + _LEAST
    tint = [of(colour) for colour in cells.colour]
    shift = float(np.linalg.norm([weight @ a - b.mean() for a, b in tint]))
    ratios = []
    for field, share_of in ((cells.steep, 0.5), (cells.steep, 0.95), (cells.fine, 0.5)):
        a, b = (float(np.quantile(part, share_of)) for part in of(field))
        ratios.append(np.log((a + 0.005) / (b + 0.005)))
    place = [of(axis)[0] for axis in cells.place]
    numbers = [
        low / spread / 4,
        mean / spread / 2,
        high / spread / 4,
        4 * low,
        4 * mean,
        4 * high,
        np.log(own_spread / spread),
        8 * shift,
        *ratios,
        2 * _slanted(within, place, weight),
    ]
    return np.clip(np.array(numbers, np.float32), -2, 2)


def _slanted(values: F32, place: list[F32], weight: F32) -> float:
    """How much of the values' spread one slope explains, 0..1: a dent's two sides, a shadow."""
    at = np.stack([axis - weight @ axis for axis in place], axis=1)
    away = values - weight @ values
    normal = (at.T * weight) @ at + np.eye(2) * 1e-3
    slope = np.linalg.solve(normal, (at.T * weight) @ away)
    total = float(weight @ away**2)
    return float(np.clip(slope @ ((at.T * weight) @ away) / max(total, 1e-8), 0, 1))
