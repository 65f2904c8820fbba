"""Draw large pictures with small defects, as a data set in MVTec AD's layout.

    python benchmarks/draw_large.py large --side 1024 --count 16
    clipsam refinement bundles/tiny large --category object --tiles 3x3 --zoom auto

Procedural pictures with defects planted at native size, `--sizes` pixels long; every fourth
picture is good. The same number and side are always the same picture.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.synthetic.sample import make_sample
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.images.image import Image
from clipsam.runtime.planting.plant import plant


def draw(number: int, side: int, sizes: tuple[float, float]) -> tuple[Image, NDArray[np.bool_]]:
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


def main() -> int:
    """Command line of the module; returns the exit code."""
    parser = command_parser(None, __doc__)
    add = parser.add_argument
    add("folder", type=Path)
    add("--side", type=int, default=1024, help="pixels (default: 1024)")
    add("--count", type=int, default=16, help="of pictures (default: 16)")
    add("--first", type=int, default=0, help="number of the first one (default: 0)")
    add("--sizes", type=float, nargs=2, default=(20, 120), help="of defects (default: 20 120)")
    args = parser.parse_args()
    for number in tqdm(range(args.first, args.first + args.count)):
        image, mask = draw(number, args.side, tuple(args.sizes))
        kind = "defect" if mask.any() else "good"
        files = {
            args.folder / "test" / kind / f"{number:04}.png": cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        }
        if mask.any():
            truth = args.folder / "ground_truth" / kind / f"{number:04}_mask.png"
            files[truth] = mask.astype(np.uint8) * 255
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
