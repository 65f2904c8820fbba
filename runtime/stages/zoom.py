"""Zoom: SAM looks at crops around the components, at the image's own resolution.

SAM's input holds a large picture shrunken, where a thin defect has no edge left to redraw. A crop
of SAM's own size around a group of components shows them as the camera did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from clipsam.runtime.backends.base import Array, DeviceArray
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.mask_upscale import MaskWindow
from clipsam.runtime.stages.prompts import PromptOptions, Prompts, some_prompts
from clipsam.runtime.stages.sam import Masks, Segmenter

MOST = 4  # crops: each costs SAM's encoder once
_CONTEXT = 0.5  # of a component's longer side, on every side of its box
_LEAST = 16  # pixels of context
_GAIN = 1.25  # a crop that shows less than so much more is not worth its time
_WIDER = 1.25  # crops that are too many grow by this

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom; the last two not within


@dataclass(frozen=True)
class Crop:
    """What SAM is shown of an image, and which boxes it is asked for there.

    Attributes:
      left, top, right, bottom: pixels of the image; right and bottom are not within.
      boxes: indices among the prompts, ascending.
    """

    left: int
    top: int
    right: int
    bottom: int
    boxes: tuple[int, ...]

    def of(self, image: Image) -> Image:
        """The crop of the image it was made for."""
        return np.ascontiguousarray(image[self.top : self.bottom, self.left : self.right])


def choose_crops(
    option: str, prompts: Prompts, shape: tuple[int, ...], sam_size: int
) -> tuple[Crop, ...]:
    """The crops of an image [H,W,...] that hold every box with its context; () for the whole image.

    A crop is a square of `sam_size` or, around a larger component, of that; the image's edges cut
    it. Boxes share one where it holds them all. At most `MOST`: where more would be needed, they
    are wider. "auto" takes crops where all of them show at least `_GAIN` times the resolution of
    the whole image.
    """
    height, width = shape[:2]
    if option == "off" or not len(prompts):
        return ()
    needed = [_with_context(prompts.boxes[i].tolist(), shape) for i in range(len(prompts))]
    side: float = sam_size
    while True:
        groups = _groups(needed, side)
        crops = tuple(_crop(needed, group, round(side), shape) for group in groups)
        longest = max(max(c.right - c.left, c.bottom - c.top) for c in crops)
        if longest * _GAIN > max(height, width):
            return ()
        if len(crops) <= MOST:
            return crops
        side *= _WIDER


def _with_context(box: Sequence[float], shape: tuple[int, ...]) -> Rectangle:
    x_min, y_min, x_max, y_max = (int(v) for v in box)
    margin = max(_LEAST, round(_CONTEXT * max(x_max - x_min + 1, y_max - y_min + 1)))
    return (
        max(0, x_min - margin),
        max(0, y_min - margin),
        min(shape[1], x_max + 1 + margin),
        min(shape[0], y_max + 1 + margin),
    )


def _groups(needed: Sequence[Rectangle], side: float) -> list[list[int]]:
    """Rectangles that fit together into a square of `side`, or into one as large as the first of
    them: the largest first, and always the one that makes the group grow least."""
    left = sorted(range(len(needed)), key=lambda i: (-_longer(needed[i]), needed[i]))
    groups = []
    while left:
        group = [left.pop(0)]
        whole = needed[group[0]]
        room = max(side, _longer(whole))
        while left:
            nearest = min(left, key=lambda i: _longer(_union(whole, needed[i])))
            if _longer(_union(whole, needed[nearest])) > room:
                break
            whole = _union(whole, needed[nearest])
            group.append(nearest)
            left.remove(nearest)
        groups.append(sorted(group))
    return sorted(groups)


def _union(a: Rectangle, b: Rectangle) -> Rectangle:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _longer(a: Rectangle) -> int:
    return max(a[2] - a[0], a[3] - a[1])


def _crop(
    needed: Sequence[Rectangle], group: Sequence[int], side: int, shape: tuple[int, ...]
) -> Crop:
    """The square around a group, moved into the image."""
    whole = needed[group[0]]
    for i in group[1:]:
        whole = _union(whole, needed[i])
    side = max(side, _longer(whole))
    (left, right), (top, bottom) = (
        _within((low + high) // 2 - side // 2, side, most)
        for low, high, most in ((whole[0], whole[2], shape[1]), (whole[1], whole[3], shape[0]))
    )
    return Crop(left, top, right, bottom, tuple(group))


def _within(start: int, side: int, most: int) -> tuple[int, int]:
    start = max(0, min(start, most - side))
    return start, min(most, start + side)


@dataclass(frozen=True)
class CropMasks:
    """The masks of all crops, in image coordinates."""

    crops: tuple[Crop, ...]
    masks: tuple[Masks, ...]  # of each crop, in its own coordinates

    def windows(self) -> Iterator[tuple[MaskWindow, float]]:
        """As `Masks.windows`."""
        for crop, masks in zip(self.crops, self.masks, strict=True):
            for window, score in masks.windows():
                rows, columns = _moved(window.rows, crop.top), _moved(window.columns, crop.left)
                yield replace(window, rows=rows, columns=columns), score


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def crop_prompts(crop: Crop, prompts: Prompts, options: PromptOptions) -> Prompts:
    """The crop's prompts, in its own coordinates; points that boxes share are of its components."""
    return some_prompts(prompts, crop.boxes, options, (crop.left, crop.top))


def segment(
    sam: Segmenter,
    image: Image,
    prompts: Prompts,
    crops: Sequence[Crop],
    options: PromptOptions,
    frame: Array | DeviceArray | None = None,
    timed: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Masks | CropMasks:
    """SAM's masks of all prompts, of which there is one or more, from crops of the image one by
    one, or from the whole where there are none.

    `frame` is that of `Segmenter.encode`, of the whole; `timed` is entered around the stages
    "encode" and "decode".
    """
    if not crops:
        with timed("encode"):
            embedding = sam.encode(image, frame)
        with timed("decode"):
            return sam.decode(embedding, prompts)
    masks = []
    for crop in crops:
        with timed("encode"):
            embedding = sam.encode(crop.of(image))
        with timed("decode"):
            masks.append(sam.decode(embedding, crop_prompts(crop, prompts, options)))
    return CropMasks(tuple(crops), tuple(masks))
