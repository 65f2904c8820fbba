"""Large pictures with small defects: procedural ones, or those of a folder.

Procedural pictures are drawn at `--side` pixels with defects planted at native size, `--sizes`
pixels long; every fourth picture is good.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.data.selection import select_items
from clipsam.research.synthetic.sample import make_sample
from clipsam.runtime.images.image import Image
from clipsam.runtime.planting.plant import plant

Mask = NDArray[np.bool_]


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """The arguments that `pictures` reads."""
    add = parser.add_argument
    add("--side", type=int, default=1024, help="of procedural pictures (default: 1024)")
    add("--count", type=int, default=16, help="of procedural pictures, or rounds (default: 16)")
    add("--first", type=int, default=0, help="number of the first procedural picture (default: 0)")
    add("--sizes", type=float, nargs=2, default=(20, 120), help="of defects (default: 20 120)")
    add("--dataset", help="pictures of a folder instead")
    add("--category")
    add("--every", type=int, default=2, help="pixel of a row and a column counts (default: 2)")


def draw(number: int, side: int, sizes: tuple[float, float]) -> tuple[Image, Mask]:
    """One procedural picture [side,side,3] and its defects."""
    sample = make_sample(np.random.default_rng([87, side, number]), side, defect_rate=0.0)
    image, mask = sample.image, np.zeros((side, side), np.bool_)
    rng = np.random.default_rng([88, side, number])
    if number % 4 != 3:
        for _ in range(int(rng.integers(3, 7))):
            size = float(np.exp(rng.uniform(*np.log(sizes))))
            planted = plant(image, rng, size=size, part=sample.present > 0)
            if planted is not None:
                image, mask = planted.image, mask | planted.mask
    return image, mask


def pictures(args: argparse.Namespace) -> Iterator[tuple[Image, Mask, str]]:
    """What the arguments name, with the word that the parts are called."""
    if args.dataset is None:
        for number in tqdm(range(args.first, args.first + args.count)):
            yield *draw(number, args.side, tuple(args.sizes)), "object"
        return
    for item in tqdm(select_items(args.dataset, args.category, 0, 0, None)):
        image, mask = item.load()
        yield image, mask, item.category
