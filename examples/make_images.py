"""Make the sample images in examples/images and examples/words: procedural parts, no photographs.

python examples/make_images.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from clipsam.research.synthetic.sample import make_sample, sample_from_seed
from clipsam.runtime.images.image import Image

SIZE = 512
SEEDS = (900_000, 900_015, 900_024, 900_028)  # each part once good and once defective
SEVERAL = 910_117  # a part with defects of several kinds, and a printed date


def main() -> None:
    """Write SIZE x SIZE JPEG files into examples/images/{good,defective} and examples/words."""
    here = Path(__file__).parent
    folder = here / "images"
    for kind in ("good", "defective"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS, start=1):
            sample = sample_from_seed(seed, SIZE, defect_rate=float(kind == "defective"))
            name = f"part-{number}.jpg"
            _write(folder / kind / name, sample.image)
    several = make_sample(np.random.default_rng(SEVERAL), SIZE, defect_rate=1, even=True)
    (here / "words").mkdir(exist_ok=True)
    _write(here / "words" / "part.jpg", several.image)


def _write(path: Path, image: Image) -> None:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])


if __name__ == "__main__":
    main()
