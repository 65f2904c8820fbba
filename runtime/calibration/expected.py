"""What the limit will find: defects drawn onto good parts, by kind and by size.

An estimate. Real defects are others, and which kinds a line makes nobody here knows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.calibration.observed import Observed
from clipsam.runtime.images.image import Image
from clipsam.runtime.planting.canvas import Mask
from clipsam.runtime.planting.foreground import find_part
from clipsam.runtime.planting.plant import SMALLEST, plant

_TILE, _COLUMNS = 160, 6
_CAUGHT, _MISSED = (40, 160, 60), (220, 50, 40)  # RGB
_SIZES = (0.03, 0.06, 0.12, 0.25)  # of the shorter side: where sizes are divided


@dataclass(frozen=True, eq=False)
class Example:
    """A good part with a planted defect.

    Attributes:
      kind: of the defect.
      size: its length in pixels of the image.
      seen: what the model saw.
      tile: a picture [160,160,3] with the defect outlined.
    """

    kind: str
    size: float
    seen: Observed
    tile: Image


def plant_examples(
    images: Sequence[Image],
    observe: Callable[[Image], Observed],
    count: int,
    where: Callable[[Image], NDArray[np.bool_] | None],
    seed: int = 0,
) -> Iterator[Example | None]:
    """Up to `count` examples on the images in turn; None where a defect did not fit.

    `where` gives the area in which a defect may lie, bool [H,W], or None for anywhere. Sizes are
    drawn between 2 and 30 % of the shorter side, as many small as large ones.
    """
    parts: dict[int, Mask] = {}  # where the part is, found once a picture
    for number in range(count):
        index = number % len(images)
        image = images[index]
        rng = np.random.default_rng([seed, number])
        side = min(image.shape[:2])
        size = max(SMALLEST, side * float(np.exp(rng.uniform(np.log(0.02), np.log(0.3)))))
        if index not in parts:
            parts[index] = find_part(image)
        planted = plant(image, rng, size=size, part=parts[index], where=where(image))
        if planted is None:
            yield None
            continue
        tile = _tile(planted.image, planted.mask)
        yield Example(planted.kind, planted.size, observe(planted.image), tile)


def tables(
    examples: Sequence[Example], found: NDArray[np.bool_], side: int, mm_per_pixel: float | None
) -> dict[str, dict[str, tuple[int, int]]]:
    """{"kind" and "size": {name: (found, of)}} of the examples; sizes in pixels or mm."""
    unit, scale = ("mm", mm_per_pixel) if mm_per_pixel else ("px", 1.0)
    edges = [share * side for share in _SIZES]
    names = [f"up to {edges[0] * scale:.3g} {unit}"]
    names += [f"{a * scale:.3g} to {b * scale:.3g} {unit}" for a, b in pairwise(edges)]
    names.append(f"over {edges[-1] * scale:.3g} {unit}")
    by_kind: dict[str, list[bool]] = defaultdict(list)
    by_size: dict[str, list[bool]] = {name: [] for name in names}
    for example, caught in zip(examples, found.tolist(), strict=True):
        by_kind[example.kind].append(caught)
        by_size[names[int(np.searchsorted(edges, example.size))]].append(caught)
    both = {"kind": dict(sorted(by_kind.items())), "size": by_size}
    return {
        title: {name: (sum(hits), len(hits)) for name, hits in rows.items() if hits}
        for title, rows in both.items()
    }


def contact_sheet(examples: Sequence[Example], found: NDArray[np.bool_]) -> Image:
    """The planted defects, smallest first, with a green frame where found and a red one where
    not."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].size)
    tiles = []
    for i in order:
        tile = examples[i].tile.copy()
        colour = _CAUGHT if found[i] else _MISSED
        cv2.rectangle(tile, (0, 0), (_TILE - 1, _TILE - 1), colour, 6)
        text = f"{examples[i].kind} {examples[i].size:.0f} px"
        cv2.rectangle(tile, (3, _TILE - 20), (_TILE - 4, _TILE - 4), (255, 255, 255), -1)
        at = (6, _TILE - 8)
        cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    while len(tiles) % _COLUMNS:
        tiles.append(np.full((_TILE, _TILE, 3), 255, np.uint8))
    rows = [np.hstack(tiles[i : i + _COLUMNS]) for i in range(0, len(tiles), _COLUMNS)]
    return np.asarray(np.vstack(rows), np.uint8)


def _tile(image: Image, mask: NDArray[np.bool_]) -> Image:
    """The surroundings of the defect: at least a third of the picture, square."""
    ys, xs = np.nonzero(mask)
    reach = max(np.ptp(ys), np.ptp(xs)) + 1
    side = int(min(max(2 * reach, min(image.shape[:2]) // 3), *image.shape[:2]))
    top = int(np.clip(ys.mean() - side / 2, 0, image.shape[0] - side))
    left = int(np.clip(xs.mean() - side / 2, 0, image.shape[1] - side))
    window = slice(top, top + side), slice(left, left + side)
    tile = cv2.resize(image[window], (_TILE, _TILE), interpolation=cv2.INTER_AREA)
    shown = cv2.resize(mask[window].astype(np.uint8), (_TILE, _TILE))
    outlines, _ = cv2.findContours(shown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, outlines, -1, (255, 220, 0), 1)
    return np.asarray(tile, np.uint8)
