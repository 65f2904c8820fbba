"""Folders in MVTec AD's layout, and the synthetic set, as lists of labelled images.

ROOT/train/good/*.png             not used by zero-shot evaluation
ROOT/test/good/*.png
ROOT/test/<defect>/NNN.png
ROOT/ground_truth/<defect>/NNN_mask.png   paired by stem, > 0 is anomalous
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.synthetic import sample_from_seed
from clipsam.runtime.errors import DatasetError
from clipsam.runtime.image_io import SUFFIXES, read_image
from clipsam.runtime.preprocess import Image

# Training, pre-training and validation draw their samples far away from these.
SYNTHETIC_TEST_SEED = 2**42


@dataclass(frozen=True)
class LabelledImage:
    """One image of a test split; `mask_path` is None for a good one."""

    name: str  # defect folder / file name
    defect: str  # folder name, "good" for good ones
    category: str  # what the text prompts call it
    image_path: Path | None  # None: synthetic, made from `seed`
    mask_path: Path | None = None
    seed: int = 0
    size: int = 0

    def load(self) -> tuple[Image, NDArray[np.bool_]]:
        """HxWx3 uint8 RGB and its mask bool [H,W]. Raises ImageError or DatasetError."""
        if self.image_path is None:
            sample = sample_from_seed(self.seed, self.size)
            return sample.image, sample.mask > 0
        image = read_image(self.image_path)
        if self.mask_path is None:
            return image, np.zeros(image.shape[:2], np.bool_)
        mask = cv2.imread(str(self.mask_path), cv2.IMREAD_GRAYSCALE)
        if mask is None or mask.shape != image.shape[:2]:
            found = "cannot be read" if mask is None else f"is {mask.shape[1]}x{mask.shape[0]}"
            raise DatasetError(
                f"The mask {self.mask_path} {found}, its image is "
                f"{image.shape[1]}x{image.shape[0]}: repair the pair."
            )
        return image, mask > 0


def mvtec_category(root: Path, category: str) -> list[LabelledImage]:
    """The test split of one category folder in MVTec AD's layout.

    `category` is the word for the text prompts. Raises DatasetError naming the first image
    without a mask, or what the folder lacks.
    """
    test = root / "test"
    if not test.is_dir():
        raise DatasetError(f"{root} has no folder test/: give one category in MVTec AD's layout.")
    found: list[LabelledImage] = []
    for folder in sorted(p for p in test.iterdir() if p.is_dir()):
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
            mask = None
            if folder.name != "good":
                mask = root / "ground_truth" / folder.name / f"{path.stem}_mask.png"
                if not mask.is_file():
                    raise DatasetError(f"{path} has no mask {mask}: add it or move the image.")
            name = f"{folder.name}/{path.name}"
            found.append(LabelledImage(name, folder.name, category, path, mask))
    if not found:
        raise DatasetError(f"{test} holds no images ({', '.join(SUFFIXES)}).")
    return found


def find_dataset(root: Path, category: str | None = None) -> list[LabelledImage]:
    """One category folder, or a folder of category folders (each named by its folder).

    `category` overrides the word for the text prompts.
    """
    if (root / "test").is_dir():
        return mvtec_category(root, category or _word(root))
    folders = sorted(p for p in root.glob("*") if (p / "test").is_dir()) if root.is_dir() else []
    if not folders:
        raise DatasetError(
            f"{root} is no data set: neither it nor its folders have a test/ folder."
        )
    return [item for f in folders for item in mvtec_category(f, category or _word(f))]


def synthetic_dataset(
    count: int, size: int, seed: int = SYNTHETIC_TEST_SEED
) -> Sequence[LabelledImage]:
    """`count` procedural images, each with its own category; same seed, same images."""
    items = []
    for i in range(count):
        sample = sample_from_seed(seed + i, size)
        defect = sample.defects[0].kind if sample.defects else "good"
        items.append(
            LabelledImage(f"{i:05d}", defect, sample.category, None, seed=seed + i, size=size)
        )
    return items


def _word(folder: Path) -> str:
    return folder.resolve().name.replace("_", " ")
