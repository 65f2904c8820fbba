"""Large pictures: how to fuse tiles with the look at the whole, what zoom does for SAM, and memory.

    python benchmarks/bench_large.py tiles bundles/tiny --side 1024 --count 16
    python benchmarks/bench_large.py tiles bundles/tiny --dataset path/to/cookie --category cookie
    python benchmarks/bench_large.py zoom bundles/tiny --side 1024 --count 16
    python benchmarks/bench_large.py peak bundles/tiny --megapixels 50

Procedural pictures are drawn at `--side` pixels with defects planted at native size, `--sizes`
pixels long; every fourth picture is good.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from clipsam.research.data.selection import select_items
from clipsam.research.synthetic.sample import make_sample
from clipsam.runtime import ClipSAM, InspectOptions, read_image
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.level import component_level
from clipsam.runtime.planting.plant import plant
from clipsam.runtime.stages.prompts import find_prompts
from clipsam.runtime.stages.rough_map import Looks, at_image_size, find_looks, look_map
from clipsam.runtime.stages.zoom import choose_crops

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
FUSIONS: dict[str, Callable[[Map, Map], Map]] = {
    "tiles alone": lambda whole, tiles: tiles,
    "mean": lambda whole, tiles: (whole + tiles) / 2,
    "geometric mean": lambda whole, tiles: np.sqrt(whole * tiles),
    "whole^1/4 tiles^3/4": lambda whole, tiles: whole**0.25 * tiles**0.75,
    "maximum": np.maximum,
}
_SMALLEST = 60  # pixels of a component that counts for an image's score
_MIB = 2**20


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
        for number in tqdm(range(args.count)):
            yield *draw(number, args.side, tuple(args.sizes)), "object"
        return
    for item in tqdm(select_items(args.dataset, args.category, 0, 0, None)):
        image, mask = item.load()
        yield image, mask, item.category


def tiles(args: argparse.Namespace) -> None:
    """Pixel AUROC and AP, image AUROC of every grid and fusion."""
    found: dict[str, list[tuple[Mask, Map, float]]] = {}
    with ClipSAM.open(args.bundle, threads=args.threads) as model:
        session = model.sessions["clip_umci"]
        for image, mask, word in pictures(args):
            text = model.bundle.text(word)
            for grid in args.grids:
                looks = Looks.of(session, image, grid)
                ((maps, _),) = find_looks(session, [looks], text[None])
                whole = at_image_size(maps[0], image)
                rows = {"one look": whole}
                if len(maps) > 1:
                    close = looks.grid.blend(maps[1:])
                    rows |= {f"{grid} {name}": fuse(whole, close) for name, fuse in FUSIONS.items()}
                for name, values in rows.items():
                    if name != "one look" or grid == args.grids[0]:
                        score = component_level(np.ascontiguousarray(values), _SMALLEST)
                        thin = mask[:: args.every, :: args.every], values[:: args.every, :: args.every]
                        found.setdefault(name, []).append((thin[0], thin[1].copy(), score))
    print(f"{'':28s} pixel AUROC     AP  image AUROC")
    for name, seen in found.items():
        truth = np.concatenate([mask.ravel() for mask, _, _ in seen])
        values = np.concatenate([values.ravel() for _, values, _ in seen])
        bad = [bool(mask.any()) for mask, _, _ in seen]
        image = roc_auc_score(bad, [s for _, _, s in seen]) if len(set(bad)) == 2 else np.nan
        pixel, precise = roc_auc_score(truth, values), average_precision_score(truth, values)
        print(f"{name:28s} {100 * pixel:11.1f} {100 * precise:6.1f} {100 * image:12.1f}")


def zoom(args: argparse.Namespace) -> None:
    """IoU with the true defect of what is drawn around every component that touches one."""
    overlaps: dict[str, list[float]] = {"rough map": [], "whole": [], "crop": []}
    encoded = []
    with ClipSAM.open(args.bundle, threads=args.threads) as model:
        session, sam = model.sessions["clip_umci"], model.segmenter
        options = InspectOptions(limit=args.limit)
        for image, mask, word in pictures(args):
            looks = Looks.of(session, image, args.grids[-1])
            ((maps, _),) = find_looks(session, [looks], model.bundle.text(word)[None])
            rough = look_map(maps, image, looks.grid)
            gate = options.gate(model.bundle.manifest.prompts, rough.shape, looks.grid.share)
            prompts = find_prompts(rough, gate)
            crops = choose_crops("auto", prompts, image.shape, sam.image_size)
            if not mask.any() or not crops:
                continue
            encoded.append(len(crops))
            _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            drawn = {"whole": (), "crop": crops}
            for index in range(len(prompts)):
                own = np.zeros(mask.size, np.bool_)
                own[prompts.components[index].pixels] = True
                met = np.unique(labels.ravel()[own])
                truth = np.isin(labels, met[met > 0])
                if not truth.any():
                    continue
                overlaps["rough map"].append(_iou(own.reshape(mask.shape), truth))
                for name, shown in drawn.items():
                    overlaps[name].append(_iou(_best(model, image, prompts, shown, index), truth))
    print(f"{len(overlaps['crop'])} components, {np.mean(encoded):.1f} crops a picture; mean IoU:")
    for name, values in overlaps.items():
        print(f"  {name:10s} {np.mean(values):.3f}")
