"""Measure a bundle on a data set: pixel AUROC, AP and F1-max, per defect and in the mean.

    clipsam evaluate bundles/tiny path/to/steel --category steel
    clipsam evaluate bundles/tiny synthetic --sheet sheet.png

The bundle runs exactly as on the box. Pixels are pooled over a group's images after resizing map
and mask to `--size` (0: as they are). A defect's row pools its images and the good ones; a data
set without good images still has good pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.datasets import LabelledImage, find_dataset, synthetic_dataset
from clipsam.research.metrics import pixel_metrics
from clipsam.runtime.errors import ClipSAMError
from clipsam.runtime.files import write_bytes
from clipsam.runtime.image_io import write_png
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.preprocess import Image
from clipsam.runtime.render import overlay
from clipsam.runtime.session import PROVIDERS

TILE = 224  # side of a contact sheet's pictures
SHEET_ROWS = 12


@dataclass(frozen=True)
class Measured:
    """One image after inspection, at the metric's resolution."""

    item: LabelledImage
    final: NDArray[np.float32]
    mask: NDArray[np.bool_]
    score: float
    anomalous: bool


def evaluate(
    model: ClipSAM,
    items: Iterable[LabelledImage],
    size: int,
    tiles: list[Image] | None = None,
    without_mmr: bool = False,
) -> list[Measured]:
    """Inspect every item; `tiles` collects the contact sheet's rows. An unknown category falls
    back to the generic word, as appendix A does. `without_mmr` stops at the rough map (table 2)."""
    deadline_ms = 0.0 if without_mmr else None
    measured = []
    known = set(model.bundle.manifest.categories)
    for item in items:
        image, mask = item.load()
        category = item.category if item.category in known else "object"
        result = model.inspect(image, category, deadline_ms=deadline_ms)
        final = result.score_map
        if tiles is not None:
            tiles.append(_row(image, mask, final, overlay(image, result)))
        if size:
            final = np.asarray(cv2.resize(final, (size, size), interpolation=cv2.INTER_AREA))
            small = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            mask = small > 0.5
        measured.append(Measured(item, final, mask, result.score, result.anomalous))
    return measured


def table(measured: Sequence[Measured]) -> list[dict[str, float | str]]:
    """A row per defect, then their mean, then all pixels pooled, then the image level."""
    good = [m for m in measured if m.item.defect == "good"]
    rows: list[dict[str, float | str]] = []
    defects = sorted({m.item.defect for m in measured} - {"good"})
    for defect in defects:
        group = [m for m in measured if m.item.defect == defect]
        rows.append({"set": defect, "images": len(group), **_pixels(group + good)})
    if len(rows) > 1:
        mean = {k: float(np.mean([float(r[k]) for r in rows])) for k in ("auroc", "ap", "f1_max")}
        rows.append({"set": "mean", "images": len(measured) - len(good), **mean})
        rows.append({"set": "pooled", "images": len(measured), **_pixels(measured)})
    if good and defects:
        image_level = pixel_metrics(
            np.array([m.score for m in measured], np.float32),
            np.array([m.item.defect != "good" for m in measured]),
        )
        rows.append({"set": "image level", "images": len(measured), **image_level})
    return rows


def verdicts(measured: Sequence[Measured]) -> str:
    """How many good and how many defective images the default threshold calls anomalous."""
    parts = []
    for name, wanted in (("good", True), ("defective", False)):
        group = [m for m in measured if (m.item.defect == "good") == wanted]
        if group:
            hits = sum(m.anomalous for m in group)
            parts.append(f"{hits} of {len(group)} {name} images ({100 * hits / len(group):.0f} %)")
    return "called anomalous: " + ", ".join(parts)


def _pixels(group: Sequence[Measured]) -> dict[str, float]:
    return pixel_metrics(
        np.concatenate([m.final.ravel() for m in group]),
        np.concatenate([m.mask.ravel() for m in group]),
    )


def _row(image: Image, mask: NDArray[np.bool_], final: NDArray[np.float32], shown: Image) -> Image:
    """Image, ground truth, final map and overlay side by side."""
    grays = [mask.astype(np.uint8) * 255, (final * 255).astype(np.uint8)]
    pictures = [image, *(cv2.cvtColor(g, cv2.COLOR_GRAY2RGB) for g in grays), shown]
    return np.hstack([cv2.resize(p, (TILE, TILE), interpolation=cv2.INTER_AREA) for p in pictures])


def format_rows(rows: Sequence[dict[str, float | str]]) -> str:
    """The table as Markdown."""
    lines = ["| set | images | AUROC | AP | F1-max |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        figures = " | ".join(f"{row[k]:.3f}" for k in ("auroc", "ap", "f1_max"))
        lines.append(f"| {row['set']} | {row['images']} | {figures} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="clipsam evaluate", description="Pixel AUROC, AP and F1-max of a bundle."
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", help="a folder in MVTec AD's layout, or `synthetic`")
    parser.add_argument("--category", help="the prompts' word (default: the folder's name)")
    parser.add_argument("--size", type=int, default=0, help="side for the metrics; 0: image size")
    parser.add_argument("--limit", type=int, help="only N images of each defect, evenly spread")
    parser.add_argument("--count", type=int, default=200, help="images of the synthetic set")
    parser.add_argument("--provider", choices=tuple(PROVIDERS), default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--without-mmr", action="store_true", help="stop at the rough map")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG)")
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except ClipSAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    if args.dataset == "synthetic":
        items = list(synthetic_dataset(args.count, args.size or 256))
    else:
        items = _limit(find_dataset(Path(args.dataset), args.category), args.limit)
    tiles: list[Image] | None = [] if args.sheet else None
    with ClipSAM.open(args.bundle, args.provider, args.threads) as model:
        measured = evaluate(model, tqdm(items, unit="image"), args.size, tiles, args.without_mmr)
        identity = model.bundle.id
    rows = table(measured)
    resolution = f"{args.size}x{args.size} px" if args.size else "image size"
    print(f"bundle {identity}, {args.dataset}, pooled pixels at {resolution}\n{format_rows(rows)}")
    print(verdicts(measured))
    if args.sheet and tiles:
        pick = np.linspace(0, len(tiles) - 1, min(SHEET_ROWS, len(tiles))).round().astype(int)
        write_png(args.sheet, np.vstack([tiles[i] for i in pick]))
    if args.json:
        write_bytes(args.json, json.dumps(rows, indent=1).encode())
    return 0


def _limit(items: Sequence[LabelledImage], limit: int | None) -> list[LabelledImage]:
    if limit is None:
        return list(items)
    kept = []
    for defect in sorted({item.defect for item in items}):
        group = [item for item in items if item.defect == defect]
        pick = np.linspace(0, len(group) - 1, min(limit, len(group))).round().astype(int)
        kept += [group[i] for i in pick]
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
