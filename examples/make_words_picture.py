"""Make docs/words.png: one procedural part, asked three ways.

python examples/make_words_picture.py bundles/tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from clipsam.research.synthetic.sample import make_sample
from clipsam.runtime import ClipSAM, Image, InspectOptions, Result
from clipsam.runtime.images.caption import captioned

ROOT = Path(__file__).resolve().parent.parent
SEED, SIDE, CATEGORY = 0, 384, "object"
QUESTIONS = (
    ("nothing asked", InspectOptions()),
    ('--look-for "scratch"', InspectOptions(look_for=("scratch",))),
    ('--ignore-kind "scratch"', InspectOptions(ignore_kinds=("scratch",))),
)


def tile(image: Image, result: Result, title: str) -> Image:
    """The overlay without its caption, below what was asked."""
    factor = -(-400 // image.shape[1])
    shown = captioned(image, result, "")[: image.shape[0] * factor]
    shown = np.asarray(cv2.resize(shown, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    head = np.full((52, SIDE, 3), 255, np.uint8)
    verdict = f"{result.verdict}, score {result.score:.2f}"
    for line, text in enumerate((title, verdict)):
        at = (6, 20 + 23 * line)
        cv2.putText(head, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([head, shown])


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "words.png")
    args = parser.parse_args()
    image = make_sample(np.random.default_rng(args.seed), SIDE, even=True).image
    tiles = []
    for title, options in QUESTIONS:
        with ClipSAM.open(args.bundle, options=options) as model:
            tiles.append(tile(image, model.inspect(image, CATEGORY), title))
    cv2.imwrite(str(args.output), np.hstack(tiles)[..., ::-1])


if __name__ == "__main__":
    main()
