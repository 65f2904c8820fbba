"""What SAM adds to the rough map on any data set with masks, and which weight it has earned.

    clipsam refinement bundles/tiny synthetic
    clipsam refinement bundles/tiny path/to/steel --category steel
    clipsam refinement bundles/tiny path/to/large --category object --tiles 3x3 --zoom auto

Of every component that gets a box: how far it overlaps the defects it touches (IoU) as CLIP and
UMCI drew it, as the mask that SAM rates best draws it, and as the best of SAM's three does; and
SAM's scores on defects and on false alarms. Then, for several weights of the masks in Eq. 9
(`FusionOptions.mask_weight`, with `--zoom auto` `crop_mask_weight`; 0 is "w/o MMR"): the figures of
the final map, pixels pooled as in `evaluate`, and of the regions that touch a defect the mean IoU
with it and the mean boundary F-score. The weight belongs into the preset, chosen on pictures that
are not reported on. (`benchmarks/draw_large.py` draws large pictures with small defects.)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.cli.run import add_dataset, run_command
from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.selection import select_items
from clipsam.research.evaluation.opening import add_bundle_flags, open_bundle
from clipsam.research.evaluation.subjects import BundleModel, known_word
from clipsam.research.evaluation.tables import Tally, dataset_row, format_rows, table
from clipsam.runtime.commands.parser import command_parser, number, whole_number
from clipsam.runtime.commands.sensitivity import positive
from clipsam.runtime.core.errors import DatasetError
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.preprocess import ZOOMS
from clipsam.runtime.stages.prompts import Prompts, find_prompts
from clipsam.runtime.stages.rough_map import Looks, find_looks, look_map
from clipsam.runtime.stages.sam import Masks
from clipsam.runtime.stages.zoom import Crop, CropMasks, choose_crops, segment

WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.4, 1.0)
Mask = NDArray[np.bool_]


@dataclass
class Overlaps:
    """IoU of every prompted component with the defects it touches, and SAM's scores."""

    rough: list[float] = field(default_factory=list)  # as CLIP and UMCI drew it
    rated: list[float] = field(default_factory=list)  # the mask that SAM rates best
    best: list[float] = field(default_factory=list)  # the best of SAM's masks
    scores: list[float] = field(default_factory=list)  # SAM's highest score, on defects
    false_alarms: list[float] = field(default_factory=list)  # and on what touches none

    def add(self, prompts: Prompts, masks: Masks | CropMasks, truth: Mask) -> None:
        """Take in one image: its prompts, SAM's answer and the true mask [H,W]."""
        labels = _labels(truth)
        for box, three, scores in _each_box(masks, truth.shape):
            own = np.zeros(truth.shape, np.bool_)
            own.reshape(-1)[prompts.components[box].pixels] = True
            defects = touched(own, labels)
            if not defects.any():
                self.false_alarms.append(float(scores.max()))
                continue
            overlaps = [iou(mask, defects) for mask in three]
            self.rough.append(iou(own, defects))
            self.rated.append(overlaps[int(scores.argmax())])
            self.best.append(max(overlaps))
            self.scores.append(float(scores.max()))

    def __str__(self) -> str:
        if not self.rough:
            return f"no component on a defect, {len(self.false_alarms)} false alarms"
        better = np.mean(np.array(self.rated) > np.array(self.rough))
        alarms = f", {np.mean(self.false_alarms):.2f} on these" if self.false_alarms else ""
        return (
            f"{len(self.rough)} components on defects, {len(self.false_alarms)} false alarms\n"
            f"IoU with the defect: rough {np.mean(self.rough):.3f}, SAM's best rated mask "
            f"{np.mean(self.rated):.3f} (better in {better:.0%}), the best of its masks "
            f"{np.mean(self.best):.3f}\n"
            f"SAM's highest score: {np.mean(self.scores):.2f} on defects{alarms}"
        )


@dataclass
class Regions:
    """The regions of final maps that touch a defect: IoU and boundary F-score with all they touch.

    `tolerance` is how many pixels an edge may be off.
    """

    tolerance: int
    overlaps: list[float] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)

    def add(self, found: Mask, truth: Mask) -> None:
        """Take in one image: the decided mask and the true one, both [H,W]."""
        drawn, labels = _labels(found), _labels(truth)
        for index in np.unique(drawn[truth & found]):
            region = drawn == index
            defects = touched(region, labels)
            self.overlaps.append(iou(region, defects))
            self.edges.append(boundary_f(region, defects, self.tolerance))

    def __str__(self) -> str:
        if not self.overlaps:
            return "no region on a defect"
        return (
            f"{len(self.overlaps)} regions on defects, IoU {np.mean(self.overlaps):.3f}, edges "
            f"within {self.tolerance} px F {np.mean(self.edges):.3f}"
        )


def _labels(mask: Mask) -> NDArray[np.int32]:
    """The number [H,W] of the component that a pixel of a mask [H,W] lies in; 0: in none."""
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1], np.int32)


def touched(region: Mask, labels: NDArray[np.int32]) -> Mask:
    """The defects, whole, that a region [H,W] has a pixel in common with; they are numbered."""
    found = np.unique(labels[region])
    return np.isin(labels, found[found > 0])


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks [H,W], of which one is not empty."""
    return float(np.logical_and(a, b).sum() / np.logical_or(a, b).sum())


def boundary_f(found: Mask, truth: Mask, tolerance: int) -> float:
    """F-score of the edge pixels of two masks [H,W], neither empty: a pixel is right within
    `tolerance` pixels of the other's edge (Perazzi et al. 2016)."""
    near = np.ones((2 * tolerance + 1,) * 2, np.uint8)
    edges = [
        mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) == 0) for mask in (found, truth)
    ]
    wide = [cv2.dilate(edge.astype(np.uint8), near) > 0 for edge in edges]
    precision, recall = (
        edge[other].sum() / edge.sum() for edge, other in zip(edges, wide[::-1], strict=True)
    )
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def _each_box(
    masks: Masks | CropMasks, shape: tuple[int, ...]
) -> Iterator[tuple[int, list[Mask], NDArray[np.float32]]]:
    """Of every box its number, SAM's three masks [H,W] and their scores [3]."""
    if isinstance(masks, Masks):
        whole = Crop(0, 0, shape[1], shape[0], tuple(range(len(masks.scores))))
        masks = CropMasks((whole,), (masks,))
    for crop, some in zip(masks.crops, masks.masks, strict=True):
        drawn = some.binary()
        for box, scores in zip(crop.boxes, some.scores, strict=True):
            three = np.zeros((len(scores), *shape), np.bool_)
            for mask in three:
                mask[crop.top : crop.bottom, crop.left : crop.right], _ = next(drawn)
            yield box, list(three), scores


def measure(
    model: ClipSAM, items: Iterable[LabelledImage], weights: Sequence[float], tolerance: int
) -> tuple[Overlaps, dict[float, tuple[Tally, Regions]], list[int]]:
    """The overlaps of all components, the final maps' figures for every weight, and how many crops
    of each picture SAM was shown, none where it was shown the whole."""
    found, subject, manifest = Overlaps(), BundleModel(model), model.bundle.manifest
    rows = {weight: (Tally(), Regions(tolerance)) for weight in weights}
    usual, counts = manifest.fusion.mask_weight, []
    zoom = model.options.zoom or manifest.preprocess.zoom
    for item in items:
        image, truth = item.load()
        looks = Looks.of(model.sessions["clip_umci"], image, model.options.tiling)
        text = model.bundle.text(known_word(subject, item.category))
        ((maps, _),) = find_looks(model.sessions["clip_umci"], [looks], text[None])
        rough = look_map(maps, image, looks.grid)
        gate = model.options.gate(manifest.prompts, rough.shape, looks.grid.share)
        prompts = find_prompts(rough, gate)
        crops = choose_crops(zoom, prompts, image.shape, model.segmenter.image_size)
        counts.append(len(crops))
        masks = None
        if len(prompts):
            masks = segment(model.segmenter, image, prompts, crops, manifest.prompts)
            found.add(prompts, masks, truth)
        for weight, (tally, regions) in rows.items():
            # As with a bundle of this weight: that of crops changes neither the scale, nor
            # pictures of which SAM is shown the whole.
            own, scale = (weight, weight) if zoom == "off" else (weight if crops else usual, usual)
            drawn = masks if weight else None
            final = fixed_scale(fuse(rough, drawn, own), model.masks_per_box, scale)
            tally.add(item, final, truth, prompts.score)
            decision = replace(manifest.decision, min_area=gate.min_area)
            mask = decide(final, prompts, decision, refined=drawn is not None).mask
            regions.add(mask, truth)
    return found, rows, counts


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    items = select_items(args.dataset, args.category, args.count, 0, args.each, args.layout)
    items = [item for item in items if item.has_truth]
    if not items:
        raise DatasetError(f"No image of {args.dataset} has a mask: refinement needs some.")
    options = InspectOptions(limit=args.limit, tiles=args.tiles, zoom=args.zoom)
    provider, precision = args.provider, args.precision
    with open_bundle(args.bundle, provider, args.threads, precision, options=options) as model:
        images = tqdm(items, unit="image")
        found, weighted, crops = measure(model, images, args.weights, args.tolerance)
        ran = BundleModel(model).identity
    print(f"{args.dataset}, {len(items)} images, {np.mean(crops):.1f} crops an image, {ran}")
    print(found)
    pooled = {weight: dataset_row(table(tally)) for weight, (tally, _) in weighted.items()}
    rows = [{**row, "set": f"{weight:g}"} for weight, row in pooled.items()]
    print(format_rows(rows, first="mask_weight"))
    for weight, (_, regions) in weighted.items():
        print(f"{weight:g}: {regions}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam refinement", __doc__)
    parser.add_argument("bundle", type=Path)
    add_dataset(parser)
    add_bundle_flags(parser)
    add = parser.add_argument
    add("--limit", type=positive, help="from which a component counts (default: the bundle's)")
    add("--tiles", metavar="off|auto|NxM", help="as in `clipsam inspect` (default: off)")
    add("--zoom", choices=ZOOMS, help="auto: SAM is shown crops (default: the bundle's)")
    add("--weights", type=number(0, 1), nargs="+", default=WEIGHTS, help="of the masks, 0 to 1")
    add("--tolerance", type=whole_number(0), default=3, help="pixels an edge may be off (3)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
