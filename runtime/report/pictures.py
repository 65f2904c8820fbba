"""Small pictures of parts and their maps, as many as fit."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import ImageError
from clipsam.runtime.core.result import GOOD
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.images.thumbnail import read_judged, read_map, shrink, shrink_map
from clipsam.runtime.report.parts import Part, Progress, worst_first

SMALL, LARGE = 160, 560  # longest side, pixels
LARGEST = 48  # how many of the worst parts get large pictures
SMALL_MAP, LARGE_MAP = 96, 280  # a map is smooth: it needs fewer pixels than its picture
_HEAT = (232, 93, 4)  # RGB at the limit; towards yellow above it
_HOT = (255, 214, 10)

Pair = tuple[str, str]  # picture and map as data: addresses; "" where there is none


def embed(
    parts: Sequence[Part], most_bytes: int, progress: Progress = lambda done, total: None
) -> dict[int, Pair]:
    """Pictures by index into `parts`, together at most `most_bytes` of text.

    What is not good comes first, the worst before all; then good parts spread evenly over time.
    The map is drawn by itself, transparent where it is low, so that a page can lay it over.
    """
    order = _by_interest(parts)
    found: dict[int, Pair] = {}
    room = most_bytes
    wanted = iter(enumerate(order))
    done = 0
    with ThreadPoolExecutor() as pool:
        while room > 0 and (chunk := list(islice(wanted, 64))):
            sides = [LARGE if rank < LARGEST else SMALL for rank, _ in chunk]
            pairs = pool.map(_pair, [parts[i] for _, i in chunk], sides)
            for (_, index), pair in zip(chunk, pairs, strict=True):
                size = sum(map(len, pair)) + 24
                if any(pair) and size <= room:
                    found[index] = pair
                    room -= size
            done += len(chunk)
            progress(done, len(order))
            # A few more might fit, but looking for them would read every picture.
            if room < 64 * 1024:
                break
    return found


def _by_interest(parts: Sequence[Part]) -> list[int]:
    worst = worst_first(parts)
    first = [i for i in worst if parts[i].verdict != GOOD or parts[i].label is not None]
    rest = sorted(set(range(len(parts))) - set(first))
    golden = (math.sqrt(5) - 1) / 2  # its multiples fill an interval evenly at every length
    spread = sorted(range(len(rest)), key=lambda k: k * golden % 1)
    return first + [rest[k] for k in spread]


def shown_of(part: Part) -> tuple[Image | None, NDArray[np.float32] | None]:
    """Picture and map; where the picture is gone, the overlay, which shows both."""
    if part.fetch is not None:
        return part.fetch()
    image, scores = read_judged(part.picture, part.sha256), read_map(part.score_map)
    if image is None and part.overlay is not None:
        try:
            return read_image(part.overlay), None
        except ImageError:
            pass
    return image, scores


def _pair(part: Part, side: int) -> Pair:
    image, scores = shown_of(part)
    picture = "" if image is None else _address(shrink(image, side)[..., ::-1], 62)
    if scores is None:
        return picture, ""
    map_side = LARGE_MAP if side == LARGE else SMALL_MAP
    return picture, _address(heat(scores, part.map_limit, map_side), 60)


def heat(scores: NDArray[np.float32], limit: float | None, side: int) -> NDArray[np.uint8]:
    """HxWx4 BGRA: nothing at half the limit, the warning colour at it, yellow far above."""
    small = shrink_map(scores, side)
    anchor = min(max(limit or 0.5, 0.02), 0.98)
    above = np.clip((small - anchor) / (1 - anchor), 0, 1)[..., None]
    colour = (1 - above) * np.array(_HEAT[::-1]) + above * np.array(_HOT[::-1])
    alpha = np.clip((small / anchor - 0.5) / 0.5, 0, 1)[..., None] * 190
    return np.concatenate([colour, alpha], axis=2).astype(np.uint8)


def _address(pixels: cv2.typing.MatLike, quality: int) -> str:
    done, data = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode() if done else ""
