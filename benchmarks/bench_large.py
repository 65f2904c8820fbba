"""Large pictures: fusing tiles with the look at the whole, memory and time.

    python benchmarks/bench_large.py tiles bundles/tiny --dataset path/to/cookie --category cookie
    python benchmarks/bench_large.py peak bundles/tiny --megapixels 50
    python benchmarks/bench_large.py time bundles/tiny --megapixels 5 --grids off 2x2 auto

`draw_large.py` draws procedural pictures to measure on. What zoom does: `clipsam refinement`.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from harness.memory import peak_mb
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from clipsam.research.data.selection import select_items
from clipsam.runtime import ClipSAM, InspectOptions, read_image
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.level import component_level
from clipsam.runtime.stages.rough_map import Looks, at_image_size, find_looks

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


def tiles(args: argparse.Namespace) -> None:
    """Pixel AUROC and AP, image AUROC of every grid and fusion."""
    found: dict[str, list[tuple[Mask, Map, float]]] = {}
    with ClipSAM.open(args.bundle, threads=args.threads) as model:
        session = model.sessions["clip_umci"]
        for item in tqdm(select_items(args.dataset, args.category, 0, 0, None)):
            image, mask = item.load()
            text = model.bundle.text(item.category)
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
    add("what", choices=("tiles", "peak", "time"))
    add("bundle", type=Path)
    add("--threads", type=int)
    add("--dataset", help="for tiles: a folder with masks")
    add("--category", help="what its parts are called (default: the folder's name)")
    add("--every", type=int, default=2, help="pixel of a row and a column counts (default: 2)")
    add("--count", type=int, default=16, help="of rounds, for time (default: 16)")
    add("--grids", nargs="+", default=["2x2", "3x3", "4x4"])
    add("--megapixels", type=float, default=50)
    add("--tiles", default="auto", help="for peak (default: auto)")
    add("--zoom", default="auto", help="for peak (default: auto)")
    add("--defect", action="store_true", help="peak: draw a defect, so that SAM runs")
    args = parser.parse_args()
    if args.what == "tiles" and args.dataset is None:
        parser.error("tiles needs --dataset")
    {"tiles": tiles, "peak": peak, "time": times}[args.what](args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
