"""What SAM adds to the rough map on any data set with masks, and which weight it has earned.

    python -m clipsam.research.refinement bundles/tiny synthetic
    python -m clipsam.research.refinement bundles/tiny path/to/steel --category steel

Of every component that gets a box: how far it overlaps the defects it touches (IoU) as CLIP and
UMCI drew it, as the mask that SAM rates best draws it, and as the best of SAM's three does; and
SAM's scores on defects and on false alarms. Then the figures of the final map for several weights
of the masks in Eq. 9 (`FusionOptions.mask_weight`; 0 is "w/o MMR"), pixels pooled as in `evaluate`.
The weight belongs into the preset, chosen on pictures that are not reported on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.cli.run import add_dataset, run_command
from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.selection import select_items
from clipsam.research.evaluation.opening import add_bundle_flags, open_bundle, runs_on
from clipsam.research.evaluation.subjects import BundleModel, known_word
from clipsam.research.evaluation.tables import Tally, dataset_row, format_rows, table
from clipsam.runtime.commands.parser import command_parser, number
from clipsam.runtime.core.errors import DatasetError
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.prompts import Prompts, find_prompts
from clipsam.runtime.stages.sam import Masks, Segmenter

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)
Mask = NDArray[np.bool_]


@dataclass
class Overlaps:
    """IoU of every prompted component with the defects it touches, and SAM's scores."""

    rough: list[float] = field(default_factory=list)  # as CLIP and UMCI drew it
    rated: list[float] = field(default_factory=list)  # the mask that SAM rates best
    best: list[float] = field(default_factory=list)  # the best of SAM's masks
    scores: list[float] = field(default_factory=list)  # SAM's highest score, on defects
    false_alarms: list[float] = field(default_factory=list)  # and on what touches none

    def add(self, prompts: Prompts, masks: Masks, truth: Mask) -> None:
        """Take in one image: its prompts, SAM's answer and the true mask [H,W]."""
        _, labels = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
        each = len(masks.scores[0])
        drawn = iter([mask for mask, _ in masks.binary()])
        for component, scores in zip(prompts.components, masks.scores, strict=False):
            three = [next(drawn) for _ in range(each)]
            touched = np.unique(labels.ravel()[component.pixels])
            defects = np.isin(labels, touched[touched > 0])
            if not defects.any():
                self.false_alarms.append(float(scores.max()))
                continue
            own = np.zeros(truth.shape, np.bool_)
            own.reshape(-1)[component.pixels] = True
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


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks [H,W], of which one is not empty."""
    return float(np.logical_and(a, b).sum() / np.logical_or(a, b).sum())


def measure(
    model: ClipSAM, sam: Segmenter, items: Iterable[LabelledImage], weights: Sequence[float]
) -> tuple[Overlaps, dict[float, Tally]]:
    """The overlaps of all components, and the final maps' figures for every weight."""
    found, subject = Overlaps(), BundleModel(model)
    tallies = {weight: Tally() for weight in weights}
    for item in items:
        image, truth = item.load()
        rough = subject.rough_map(image, known_word(subject, item.category))
        prompts = find_prompts(rough, subject.prompts)
        masks = sam.decode(sam.encode(image), prompts) if len(prompts) else None
        if masks is not None:
            found.add(prompts, masks, truth.astype(np.bool_))
        for weight, tally in tallies.items():
            final = fixed_scale(fuse(rough, masks, weight), model.masks_per_box, weight)
            tally.add(item, final, truth, prompts.score)
    return found, tallies


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    items = select_items(args.dataset, args.category, args.count, 0, args.each, args.layout)
    items = [item for item in items if item.has_truth]
    if not items:
        raise DatasetError(f"No image of {args.dataset} has a mask: refinement needs some.")
    with open_bundle(args.bundle, args.provider, args.threads, args.precision) as model:
        sam = Segmenter(model.sessions["sam_encoder"], model.sessions["sam_decoder"])
        found, tallies = measure(model, sam, tqdm(items, unit="image"), args.weights)
        ran = f"bundle {model.bundle.id} on {runs_on(model)}"
    print(f"{args.dataset}, {len(items)} images, {ran}")
    print(found)
    pooled = {weight: dataset_row(table(tally)) for weight, tally in tallies.items()}
    rows = [{**row, "set": f"{weight:g}"} for weight, row in pooled.items()]
    print(format_rows(rows, first="mask_weight"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam refinement", __doc__)
    parser.add_argument("bundle", type=Path)
    add_dataset(parser)
    add_bundle_flags(parser)
    parser.add_argument(
        "--weights", type=number(0, 1), nargs="+", default=WEIGHTS, help="of the masks, 0 to 1"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
