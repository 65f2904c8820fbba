"""Measure a bundle on a data set: pixel AUROC, AP, F1-max and PRO, per defect and in the mean.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.contact_sheet import contact_row, sheet_indices, write_sheet
from clipsam.research.datasets import LabelledImage, find_dataset, synthetic_dataset
from clipsam.research.metrics import pixel_metrics, pro_score
from clipsam.runtime.errors import ClipSAMError
from clipsam.runtime.files import write_bytes
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.preprocess import Image
from clipsam.runtime.session import PROVIDERS

_NOTHING: Image = np.zeros((0, 0, 3), np.uint8)
METRICS = {"auroc": "AUROC", "ap": "AP", "f1_max": "F1-max", "pro": "PRO"}


@dataclass(frozen=True)
class Measured:
    """One image after inspection, at the metric's resolution."""

    item: LabelledImage
    final: NDArray[np.float32]
    mask: NDArray[np.bool_]
    score: float
    anomalous: bool

    @classmethod
    def at_size(
        cls,
        item: LabelledImage,
        final: NDArray[np.float32],
        mask: NDArray[np.bool_],
        size: int,
        anomalous: bool = False,
    ) -> Measured:
        """Map and mask brought to size x size pixels (0: left as they are)."""
        score = float(final.max())
        if size:
            final = np.asarray(cv2.resize(final, (size, size), interpolation=cv2.INTER_AREA))
            small = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            mask = small > 0.5
        return cls(item, final, mask, score, anomalous)


def evaluate(
    model: ClipSAM,
    items: Iterable[LabelledImage],
    size: int,
    sheet: dict[int, Image] | None = None,
    without_mmr: bool = False,
) -> list[Measured]:
    """Inspect every item; the contact sheet's rows are filled in for the indices in `sheet`.

    An unknown category falls back to the generic word, as appendix A does. `without_mmr` stops at
    the rough map (table 2).
    """
    deadline_ms = 0.0 if without_mmr else None
    measured = []
    known = set(model.bundle.manifest.categories)
    for index, item in enumerate(items):
        image, mask = item.load()
        category = item.category if item.category in known else "object"
        result = model.inspect(image, category, deadline_ms=deadline_ms)
        if sheet is not None and index in sheet:
            rough = _rough_map(model, image, category)
            sheet[index] = contact_row(image, mask, rough, model.bundle.manifest.prompts, result)
        measured.append(Measured.at_size(item, result.score_map, mask, size, result.anomalous))
    return measured


def _rough_map(model: ClipSAM, image: Image, category: str) -> NDArray[np.float32]:
    """O_f: an inspection without time for SAM returns it, divided by Eq. 9's fixed scale."""
    unrefined = model.inspect(image, category, norm="fixed", deadline_ms=0.0).score_map
    return np.asarray(unrefined * np.float32(1 + model.masks_per_box), np.float32)


def table(measured: Sequence[Measured]) -> list[dict[str, float | str]]:
    """A row per defect, then their mean, then all pixels pooled, then the image level."""
    good = [m for m in measured if m.item.defect == "good"]
    rows: list[dict[str, float | str]] = []
    defects = sorted({m.item.defect for m in measured} - {"good"})
    for defect in defects:
        group = [m for m in measured if m.item.defect == defect]
        rows.append({"set": defect, "images": len(group), **_pixels(group + good)})
    if len(rows) > 1:
        mean = {k: float(np.mean([float(r[k]) for r in rows])) for k in METRICS}
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
    finals, masks = [m.final for m in group], [m.mask for m in group]
    flat = pixel_metrics(
        np.concatenate([f.ravel() for f in finals]), np.concatenate([m.ravel() for m in masks])
    )
    return {**flat, "pro": pro_score(finals, masks)}


def format_rows(rows: Sequence[Mapping[str, float | str]], first: str = "set") -> str:
    """The table as Markdown; `first` heads the column of names."""
    lines = [f"| {first} | images | " + " | ".join(METRICS.values()) + " |", "| --- " * 6 + "|"]
    for row in rows:  # PRO has no meaning at image level
        figures = " | ".join(f"{row[k]:.3f}" if k in row else "" for k in METRICS)
        lines.append(f"| {row['set']} | {row['images']} | {figures} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="clipsam evaluate", description="Pixel AUROC, AP, F1-max and PRO of a bundle."
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
    items = select_items(args.dataset, args.category, args.count, args.size, args.limit)
    sheet: dict[int, Image] | None = None
    if args.sheet:
        sheet = dict.fromkeys(sheet_indices([item.defect for item in items]), _NOTHING)
    with ClipSAM.open(args.bundle, args.provider, args.threads) as model:
        measured = evaluate(model, tqdm(items, unit="image"), args.size, sheet, args.without_mmr)
        identity = model.bundle.id
    rows = table(measured)
    resolution = f"{args.size}x{args.size} px" if args.size else "image size"
    print(f"bundle {identity}, {args.dataset}, pooled pixels at {resolution}\n{format_rows(rows)}")
    print(verdicts(measured))
    if args.sheet and sheet:
        write_sheet(args.sheet, [sheet[index] for index in sorted(sheet)])
    if args.json:
        write_bytes(args.json, json.dumps(rows, indent=1).encode())
    return 0


def select_items(
    dataset: str, category: str | None, count: int, size: int, limit: int | None
) -> list[LabelledImage]:
    """The images of a folder, at most `limit` of each defect, or `count` of the synthetic set."""
    if dataset == "synthetic":
        return list(synthetic_dataset(count, size or 256))
    return _limit(find_dataset(Path(dataset), category), limit)


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
