"""Where reference parts help: added to the image's score, and added to the map.

    python benchmarks/bench_reference.py bundles/tiny path/to/mvtec/category --category cookie

The folder has MVTec AD's layout. Reference parts are drawn from train/good, the rest of it gives
the weight at which distances differ among good parts as much as the maps' scores do; the figures
are of test/. Means over the draws. Maps are compared at CLIP's size, the pixels of all test
pictures pooled.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from clipsam.research.data.datasets import LabelledImage, open_dataset
from clipsam.runtime import ClipSAM, read_image
from clipsam.runtime.calibration.coreset import make_reference
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.results.jobs import find_jobs
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.reference import Reference
from clipsam.runtime.stages.rough_map import find_rough

Map = NDArray[np.float32]


def far_map(reference: Reference, tokens: NDArray[np.float16], size: int) -> Map:
    """The distance of every token, [size,size]."""
    known = reference.tokens.astype(np.float32)
    far = 1 - (tokens.astype(np.float32) @ known.T).max(axis=1)
    side = round(len(far) ** 0.5)
    return np.asarray(cv2.resize(far.reshape(side, side), (size, size)), np.float32)


def main() -> None:
    """Print the table."""
    parser = command_parser(None, __doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--category", default="object")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    items: list[LabelledImage] = open_dataset(args.folder).images
    with ClipSAM.open(args.bundle) as model:
        session, text = model.sessions["clip_umci"], model.bundle.text(args.category)
        size = model.bundle.manifest.clip_image_size
        good_images = [read_image(j.source) for j in find_jobs([args.folder / "train/good"])]
        good = [model.observe(image, args.category) for image in good_images]
        test, maps, masks = [], [], []
        for item in items:
            image, mask = item.load()
            test.append(model.observe(image, args.category))
            maps.append(find_rough(session, clip_input(image, size), text[None])[0][0])
            small = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            masks.append(small > 0.5)
    defective = np.array([not item.good for item in items])
    truth, plain = np.stack(masks).ravel(), np.stack(maps)
    scores = np.array([one.score for one in test])
    print("| reference parts | image AUROC: map | distance | both | pixel AP: map | both |")
    print("| --- " * 6 + "|")
    for parts in args.parts:
        rows = []
        for draw in range(args.draws):
            order = np.random.default_rng([draw, parts]).permutation(len(good))
            reference = make_reference([good[i].tokens for i in order[:parts]], draw)
            rest = [good[i] for i in order[parts:]]
            kept = np.array([reference.distance(one.tokens)[0] for one in rest])
            weight = np.std([one.score for one in rest]) / kept.std()
            far = np.array([reference.distance(one.tokens)[0] for one in test])
            both = plain + weight * np.stack([far_map(reference, t.tokens, size) for t in test])
            rows.append(
                [
                    roc_auc_score(defective, scores),
                    roc_auc_score(defective, far),
                    roc_auc_score(defective, scores + weight * far),
                    average_precision_score(truth, plain.ravel()),
                    average_precision_score(truth, both.ravel()),
                ]
            )
        cells = " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0))
        print(f"| {parts} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
