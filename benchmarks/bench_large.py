"""Large pictures: fusing tiles with the look at the whole, zoom for SAM, memory and time.

    python benchmarks/bench_large.py tiles bundles/tiny --side 1024 --count 16
    python benchmarks/bench_large.py tiles bundles/tiny --dataset path/to/cookie --category cookie
    python benchmarks/bench_large.py zoom bundles/tiny --side 1024 --count 16
    python benchmarks/bench_large.py peak bundles/tiny --megapixels 50
    python benchmarks/bench_large.py time bundles/tiny --megapixels 5 --grids off 2x2 auto

Procedural pictures are drawn at `--side` pixels with defects planted at native size, `--sizes`
pixels long; every fourth picture is good.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from harness.memory import peak_mb
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from clipsam.research.data.selection import select_items
from clipsam.research.synthetic.sample import make_sample
from clipsam.runtime import ClipSAM, InspectOptions, read_image
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.level import component_level
from clipsam.runtime.planting.plant import plant
from clipsam.runtime.stages.prompts import Prompts, find_prompts
from clipsam.runtime.stages.rough_map import Looks, at_image_size, find_looks, look_map
from clipsam.runtime.stages.zoom import Crop, choose_crops, crop_prompts

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
FUSIONS: dict[str, Callable[[Map, Map], Map]] = {
    "tiles alone": lambda whole, tiles: tiles,
    "mean": lambda whole, tiles: np.asarray((whole + tiles) / 2, np.float32),
    "geometric mean": lambda whole, tiles: np.asarray((whole * tiles) ** 0.5, np.float32),
    "whole^1/4 tiles^3/4": lambda whole, tiles: whole**0.25 * tiles**0.75,
    "maximum": np.maximum,
}
_SMALLEST = 60  # pixels of a component that counts for an image's score


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
                        kept, step = found.setdefault(name, []), args.every
                        kept.append((mask[::step, ::step], values[::step, ::step].copy(), score))
    print(f"{'':28s} pixel AUROC     AP  image AUROC")
    for name, seen in found.items():
        truth = np.concatenate([mask.ravel() for mask, _, _ in seen])
        values = np.concatenate([values.ravel() for _, values, _ in seen])
        bad = [bool(mask.any()) for mask, _, _ in seen]
        ranked = roc_auc_score(bad, [s for _, _, s in seen]) if len(set(bad)) == 2 else np.nan
        pixel, precise = roc_auc_score(truth, values), average_precision_score(truth, values)
        print(f"{name:28s} {100 * pixel:11.1f} {100 * precise:6.1f} {100 * ranked:12.1f}")


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
            drawn: dict[str, tuple[Crop, ...]] = {"whole": (), "crop": crops}
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


def _best(
    model: ClipSAM, image: Image, prompts: Prompts, crops: tuple[Crop, ...], index: int
) -> Mask:
    """The mask of a box that SAM itself scores highest, shown the whole or the box's crop."""
    own = Crop(0, 0, image.shape[1], image.shape[0], (index,))
    for crop in crops:
        if index in crop.boxes:
            own = replace(crop, boxes=(index,))
    sam, options = model.segmenter, model.bundle.manifest.prompts
    embedding = sam.encode(own.of(image) if crops else image)
    masks = sam.decode(embedding, crop_prompts(own, prompts, options))
    best, _ = max(masks.binary(), key=lambda found: found[1])
    drawn = np.zeros(image.shape[:2], np.bool_)
    drawn[own.top : own.bottom, own.left : own.right] = best
    return drawn


def _iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def _plain(megapixels: float, defect: bool) -> Image:
    """A good part of 3:2, or one with a dark line."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(height * 1.5)
    noise = np.random.default_rng(0).integers(110, 140, (height // 8, width // 8), np.uint8)
    large = cv2.cvtColor(cv2.resize(noise, (width, height)), cv2.COLOR_GRAY2BGR)
    image = np.asarray(large, np.uint8)
    if defect:
        end = width // 3 + width // 10, height // 3 + height // 20
        cv2.line(image, (width // 3, height // 3), end, (20, 20, 20), max(1, width // 350))
    return image


def times(args: argparse.Namespace) -> None:
    """Median time of `inspect` with every grid, in turns: the clock's, and the processors'."""
    image = _plain(args.megapixels, args.defect)
    found: dict[str, list[tuple[float, float]]] = {grid: [] for grid in args.grids}
    with contextlib.ExitStack() as stack:
        models = {
            grid: stack.enter_context(
                ClipSAM.open(args.bundle, threads=args.threads, options=InspectOptions(tiles=grid))
            )
            for grid in args.grids
        }
        ran = {grid: model.inspect(image).tiles for grid, model in models.items()}
        for _ in tqdm(range(args.count)):
            for grid, model in models.items():
                clock, processors = time.perf_counter(), time.process_time()
                model.inspect(image)
                found[grid].append((time.perf_counter() - clock, time.process_time() - processors))
    for grid, taken in found.items():
        clock, processors = (1000 * float(np.median(column)) for column in zip(*taken, strict=True))
        print(f"{grid} ({ran[grid]}): {clock:.0f} ms, {processors:.0f} ms of processors")


def peak(args: argparse.Namespace) -> None:
    """Peak memory and time from a file to its Result."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "picture.png")
        cv2.imwrite(path, _plain(args.megapixels, args.defect))
        # A process of its own: memory of the drawing must not count.
        options = [str(args.bundle), path, args.tiles, args.zoom, str(args.threads or 0)]
        subprocess.run([sys.executable, __file__, "one", *options], check=True)


def one(bundle: str, path: str, tiles: str, zoom: str, threads: str) -> None:
    """Inspect one file, and say what it took."""
    options = InspectOptions(tiles=tiles, zoom=zoom)
    with ClipSAM.open(bundle, threads=int(threads) or None, options=options) as model:
        model.warm_up()
        start = time.perf_counter()
        result = model.inspect(read_image(path))
        passed = time.perf_counter() - start
    stages = {name: round(value) for name, value in result.timings.items()}
    print(
        f"{result.width}x{result.height}, tiles {result.tiles}, {result.crops} crops, "
        f"{result.verdict}: peak {peak_mb():.0f} MB, {passed:.2f} s with reading; ms {stages}"
    )


def main() -> int:
    """Command line of the module; returns the exit code."""
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
        return 0
    parser = command_parser(None, __doc__)
    add = parser.add_argument
    add("what", choices=("tiles", "zoom", "peak", "time"))
    add("bundle", type=Path)
    add("--threads", type=int)
    add("--side", type=int, default=1024, help="of procedural pictures (default: 1024)")
    add("--count", type=int, default=16, help="of procedural pictures, or rounds (default: 16)")
    add("--sizes", type=float, nargs=2, default=(20, 120), help="of defects (default: 20 120)")
    add("--dataset", help="pictures of a folder instead")
    add("--category")
    add("--grids", nargs="+", default=["2x2", "3x3", "4x4"])
    add("--every", type=int, default=2, help="pixel of a row and a column counts (default: 2)")
    add("--limit", type=float, default=0.3, help="from which zoom looks (default: 0.3)")
    add("--megapixels", type=float, default=50)
    add("--tiles", default="auto", help="for peak (default: auto)")
    add("--zoom", default="auto", help="for peak (default: auto)")
    add("--defect", action="store_true", help="peak: draw a defect, so that SAM runs")
    args = parser.parse_args()
    {"tiles": tiles, "zoom": zoom, "peak": peak, "time": times}[args.what](args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
