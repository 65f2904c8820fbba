"""Make the sample images in examples/images: procedural parts, no photographs.

python examples/make_images.py
"""

from __future__ import annotations

from pathlib import Path

import cv2

from clipsam.research.synthetic.sample import sample_from_seed

SIZE = 512
SEEDS = (900_000, 900_015, 900_024, 900_028)  # each part once good and once defective


def main() -> None:
    """Write SIZE x SIZE JPEG files into examples/images/{good,defective}."""
    folder = Path(__file__).parent / "images"
    for kind in ("good", "defective"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(SEEDS, start=1):
            sample = sample_from_seed(seed, SIZE, defect_rate=float(kind == "defective"))
            name = f"part-{number}.jpg"
            bgr = cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(folder / kind / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])


if __name__ == "__main__":
    main()
