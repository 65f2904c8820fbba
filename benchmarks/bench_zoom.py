"""What SAM adds to large pictures, shown the whole and shown crops, and which weight it earns.

    python benchmarks/bench_zoom.py bundles/tiny --side 1024 --count 16 --grid 4x4
    python benchmarks/bench_zoom.py bundles/tiny --dataset path/to/cookie --category cookie

First the IoU with the true defect of what is drawn around every component that touches one: the
rough map's component, and the mask that SAM scores highest. Then, for several weights of the masks
in Eq. 9 (0 is "w/o MMR"): the pixel AP of the final map, and of the regions that touch a defect the
mean IoU with it and the mean boundary F-score. The pictures are those of
`harness/large_pictures.py`; a weight is chosen on others than it is reported on (`--first`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from harness.large_pictures import Mask, add_pictures, pictures
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from clipsam.research.refinement import iou
from clipsam.runtime import ClipSAM, InspectOptions
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.prompts import Prompts, find_prompts
from clipsam.runtime.stages.rough_map import Looks, find_looks, look_map
from clipsam.runtime.stages.sam import Masks
from clipsam.runtime.stages.zoom import Crop, CropMasks, choose_crops, crop_prompts

Map = NDArray[np.float32]
Drawn = Masks | CropMasks | None


class Figures:
    """Of one way to draw: pooled pixels of the map, and the regions that touch a defect."""

    def __init__(self) -> None:
        self.pixels: list[Map] = []
        self.overlaps: list[float] = []
        self.edges: list[float] = []

    def add(self, final: Map, regions: Mask, truth: Mask, every: int, tolerance: int) -> None:
        """Take in one picture, all [H,W]."""
        self.pixels.append(final[::every, ::every].copy())
        _, drawn = cv2.connectedComponents(regions.astype(np.uint8), connectivity=8)
        _, labels = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
        for number in np.unique(drawn[truth & regions]):
            region = drawn == number
            defect = np.isin(labels, np.unique(labels[region & truth]))
            self.overlaps.append(iou(region, defect))
            self.edges.append(boundary_f(region, defect, tolerance))


def boundary_f(found: Mask, truth: Mask, tolerance: int) -> float:
    """F-score of a region's edge pixels: a pixel is right within `tolerance` pixels of the other's
    edge (Perazzi et al. 2016)."""
    near = np.ones((2 * tolerance + 1,) * 2, np.uint8)
    edges = [
        mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) == 0) for mask in (found, truth)
    ]
    wide = [cv2.dilate(edge.astype(np.uint8), near) > 0 for edge in edges]
    precision, recall = (
        edges[0][wide[1]].sum() / edges[0].sum(),
        edges[1][wide[0]].sum() / edges[1].sum(),
    )
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def draw_masks(model: ClipSAM, image: Image, prompts: Prompts, crops: tuple[Crop, ...]) -> Drawn:
    """SAM's masks of all prompts from the whole image, or from crops of it."""
    if not len(prompts):
        return None
    sam, options = model.segmenter, model.bundle.manifest.prompts
    if not crops:
        return sam.decode(sam.encode(image), prompts)
    masks = [sam.decode(sam.encode(c.of(image)), crop_prompts(c, prompts, options)) for c in crops]
    return CropMasks(crops, tuple(masks))


def main() -> int:
    """Command line of the module; returns the exit code."""
    parser = command_parser(None, __doc__)
    parser.add_argument("bundle", type=Path)
    add_pictures(parser)
    add = parser.add_argument
    add("--threads", type=int)
    add("--grid", default="off", help="tiles that CLIP looks at beside the whole (default: off)")
    add("--limit", type=float, help="from which a component counts (default: the bundle's)")
    add("--weights", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
    add("--tolerance", type=int, default=3, help="pixels an edge may be off (default: 3)")
    measure(parser.parse_args())
    return 0


def measure(args: argparse.Namespace) -> None:
    """Look at all pictures and print the tables."""
    found: dict[tuple[str, float], Figures] = {}
    components: dict[str, list[float]] = {"rough map": [], "whole": [], "crops": []}
    truths, encoded = [], []
    with ClipSAM.open(args.bundle, threads=args.threads) as model:
        manifest, session = model.bundle.manifest, model.sessions["clip_umci"]
        options = InspectOptions(limit=args.limit)
        for image, truth, word in pictures(args):
            looks = Looks.of(session, image, args.grid)
            ((maps, _),) = find_looks(session, [looks], model.bundle.text(word)[None])
            rough = look_map(maps, image, looks.grid)
            gate = options.gate(manifest.prompts, rough.shape, looks.grid.share)
            prompts = find_prompts(rough, gate)
            crops = choose_crops("auto", prompts, image.shape, model.segmenter.image_size)
            drawn = {"whole": draw_masks(model, image, prompts, ())}
            drawn["crops"] = draw_masks(model, image, prompts, crops) if crops else drawn["whole"]
            encoded.append(len(crops))
            truths.append(truth[:: args.every, :: args.every].ravel())
            add_components(components, prompts, drawn, truth)
            ways = [("rough map", 0.0, 0.0)]
            ways += [("whole", weight, weight) for weight in args.weights]
            # As in an inspection: masks of the whole keep the weight that they have.
            usual = manifest.fusion.mask_weight
            ways += [("crops", weight, weight if crops else usual) for weight in args.weights]
            for name, weight, own in ways:
                masks = drawn.get(name)
                total = fuse(rough, masks, own)
                final = fixed_scale(total, model.masks_per_box, manifest.fusion.mask_weight)
                decision = replace(manifest.decision, min_area=gate.min_area)
                mask = decide(final, prompts, decision, refined=masks is not None).mask
                figures = found.setdefault((name, weight), Figures())
                figures.add(final, mask, truth, args.every, args.tolerance)
    count = len(components["crops"])
    print(f"{np.mean(encoded):.1f} crops a picture; mean IoU of {count} components:")
    print("  " + ", ".join(f"{name} {np.mean(values):.3f}" for name, values in components.items()))
    print(f"{'':10s} weight     AP  regions    IoU  edges (F, {args.tolerance} px)")
    for (name, weight), row in found.items():
        precise = average_precision_score(
            np.concatenate(truths), np.concatenate([values.ravel() for values in row.pixels])
        )
        print(
            f"{name:10s} {weight:6.2f} {precise:6.3f} {len(row.overlaps):8d} "
            f"{np.mean(row.overlaps):6.3f} {np.mean(row.edges):6.3f}"
        )


def add_components(
    found: dict[str, list[float]], prompts: Prompts, drawn: dict[str, Drawn], truth: Mask
) -> None:
    """The IoU with the defects that it touches of every component, and of SAM's masks of it."""
    _, labels = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
    best = {name: best_masks(masks, truth.shape) for name, masks in drawn.items() if masks}
    for index in range(len(prompts)):
        own = np.zeros(truth.shape, np.bool_)
        own.reshape(-1)[prompts.components[index].pixels] = True
        defect = np.isin(labels, np.unique(labels[own & truth]))
        if not (own & truth).any():
            continue
        found["rough map"].append(iou(own, defect))
        for name, masks in best.items():
            found[name].append(iou(masks[index], defect))


def best_masks(drawn: Masks | CropMasks, shape: tuple[int, ...]) -> dict[int, Mask]:
    """box -> the mask [H,W] that SAM scores highest."""
    if isinstance(drawn, Masks):
        parts = [(Crop(0, 0, shape[1], shape[0], tuple(range(len(drawn.scores)))), drawn)]
    else:
        parts = list(zip(drawn.crops, drawn.masks, strict=True))
    best = {}
    for crop, masks in parts:
        each = iter([mask for mask, _ in masks.binary()])
        for index, scores in zip(crop.boxes, masks.scores, strict=True):
            three = [next(each) for _ in scores]
            best[index] = np.zeros(shape, np.bool_)
            best[index][crop.top : crop.bottom, crop.left : crop.right] = three[scores.argmax()]
    return best


if __name__ == "__main__":
    raise SystemExit(main())
