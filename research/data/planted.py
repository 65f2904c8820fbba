"""Good parts with planted defects, mixed with procedural pictures: what `adapt` trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from clipsam.research.data.items import Item, SyntheticImages
from clipsam.research.data.layouts import images_in
from clipsam.research.data.wording import PLAIN
from clipsam.runtime.core.errors import DatasetError, ImageError
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.planting.foreground import find_part
from clipsam.runtime.planting.plant import SMALLEST, plant
from clipsam.runtime.stages.preprocess import clip_input

LEAST_PARTS = 8
_MOST_HELD_OUT = 16
_SIDES = 2  # a part is kept at this many times CLIP's input, longer side
_LABELLED = 0.3  # share of a pixel of CLIP's input that a defect covers, to be labelled
_SMALLEST = 3.0  # pixels of CLIP's input
_SIZES = (0.05, 0.8)  # length of a planted defect, as a share of the part's side


@dataclass(frozen=True, eq=False)
class GoodPart:
    """A picture of a good part, shrunken, where the part is and where a defect may lie (None:
    anywhere on it): [H,W,3] uint8, [H,W] bool both."""

    name: str
    image: Image
    part: NDArray[np.bool_]
    where: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Good parts for training, for choosing the best weights, and for reporting."""

    train: tuple[GoodPart, ...]
    choose: tuple[GoodPart, ...]
    report: tuple[GoodPart, ...]


def read_good_parts(folder: Path, size: int, view: InspectOptions) -> list[GoodPart]:
    """The images directly in a folder, at most `_SIDES` * size pixels long, and of them what
    `view` leaves.

    Raises DatasetError where there are too few, ImageError for one that cannot be read or that
    the view does not fit.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder: give one with pictures of good parts.")
    paths = images_in(folder)
    if len(paths) < LEAST_PARTS:
        raise DatasetError(
            f"{folder} holds {len(paths)} pictures: adapting needs at least {LEAST_PARTS} of good "
            "parts, better 40, some of which are held out to measure what it brought."
        )
    parts = []
    for path in paths:
        try:
            image = view.crop(read_image(path))
        except ImageError as error:
            raise ImageError(f"{path.name}: {error}") from error
        scale = min(1.0, _SIDES * size / max(image.shape[:2]))
        if scale < 1:
            shape = [max(32, round(side * scale)) for side in image.shape[1::-1]]
            image = np.asarray(cv2.resize(image, shape, interpolation=cv2.INTER_AREA), np.uint8)
        where, ignored = None, view.ignored()
        if ignored is not None:
            width_height = image.shape[1::-1]
            share = cv2.resize(
                ignored.astype(np.float32), width_height, interpolation=cv2.INTER_AREA
            )
            where = np.asarray(share == 0)
        parts.append(GoodPart(path.name, image, find_part(image), where))
    return parts


def split_parts(parts: Sequence[GoodPart], seed: int) -> Split:
    """A quarter of the parts is held out, half of it to choose weights and half to report."""
    held = min(_MOST_HELD_OUT, max(2, len(parts) // 4))
    order = np.random.default_rng([seed, 7]).permutation(len(parts))
    chosen = [parts[i] for i in order]
    half = held // 2
    return Split(tuple(chosen[held:]), tuple(chosen[:half]), tuple(chosen[half:held]))


def planted_item(
    part: GoodPart, rng: np.random.Generator, size: int, category: str, defects: int
) -> Item:
    """One part with up to so many planted defects, as CLIP sees it."""
    image, mask = part.image, np.zeros(part.part.shape, np.bool_)
    least = max(SMALLEST, _SMALLEST * max(image.shape[:2]) / size)
    extent = float(np.sqrt(part.part.sum()))
    for _ in range(defects):
        length = max(least, extent * float(np.exp(rng.uniform(*np.log(_SIZES)))))
        fits = min(length, max(image.shape[:2]))
        planted = plant(image, rng, size=fits, part=part.part, where=part.where, tries=4)
        if planted is not None:
            image, mask = planted.image, mask | planted.mask
    return _as_seen(image, mask, size, category)


class PlantedParts(Dataset[Item]):
    """Item i is drawn from the seed and i alone, in turn a part and a procedural picture.

    Three parts of four have one to three planted defects. Parts are mirrored and lit a little
    differently each time, since there are few of them.
    """

    def __init__(
        self,
        parts: Sequence[GoodPart],
        size: int,
        category: str,
        seed: int,
        length: int,
    ) -> None:
        self.parts, self.size, self.category = tuple(parts), size, category
        self.seed, self.length = seed, length
        self.replay = SyntheticImages(size, seed * 2**36 + 2**35, length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if index % 2:
            return self.replay[index // 2]
        rng = np.random.default_rng([self.seed, index, 11])
        part = varied(self.parts[int(rng.integers(len(self.parts)))], rng)
        defects = int(rng.choice(4, p=[0.25, 0.5, 0.17, 0.08]))
        return planted_item(part, rng, self.size, self.category, defects)


class FeaturePool(Dataset[Item]):
    """A data set whose items keep CLIP's features from the first time they are asked for.

    `extract` maps images uint8 [1,S,S,3] to features [1,taps,H,W,C]. They stay in memory, float16:
    1.2 MB an item for `tiny`, 4.7 MB for `paper`.
    """

    def __init__(
        self, base: Dataset[Item] | Sequence[Item], length: int, extract: Callable[[Tensor], Tensor]
    ) -> None:
        self.base, self.length, self.extract = base, length, extract
        self._kept: dict[int, Item] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if index not in self._kept:
            image, mask, category, wording = self.base[index]
            features = self.extract(image[None])[0].half().cpu()
            self._kept[index] = (features, mask, category, wording)
        return self._kept[index]


def varied(part: GoodPart, rng: np.random.Generator) -> GoodPart:
    """The part mirrored, and under slightly different light."""
    flips = (
        slice(None, None, int(rng.choice((1, -1)))),
        slice(None, None, int(rng.choice((1, -1)))),
    )
    image, mask = part.image[flips], np.ascontiguousarray(part.part[flips])
    where = None if part.where is None else np.ascontiguousarray(part.where[flips])
    gain, gamma = rng.uniform(0.85, 1.15), rng.uniform(0.9, 1.1)
    table = np.clip(255 * gain * (np.arange(256) / 255) ** gamma, 0, 255).round().astype(np.uint8)
    return GoodPart(part.name, np.ascontiguousarray(table[image]), mask, where)


def held_out_items(
    parts: Sequence[GoodPart], size: int, category: str, seed: int, each: int
) -> list[Item]:
    """Every part as it is, and `each` times with a planted defect: always the same pictures."""
    items = []
    for number, part in enumerate(parts):
        items.append(planted_item(part, np.random.default_rng(0), size, category, 0))
        for turn in range(each):
            rng = np.random.default_rng([seed, number, turn, 13])
            items.append(planted_item(part, rng, size, category, 1))
    return items


def _as_seen(image: Image, mask: NDArray[np.bool_], size: int, category: str) -> Item:
    small = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    labels = torch.from_numpy((small > _LABELLED).astype(np.float32))
    return torch.from_numpy(clip_input(image, size)[0]), labels, category, PLAIN
