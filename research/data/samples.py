"""One labelled image of a data set, and what a layout found in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.core.errors import DatasetError
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import read_image

GOOD = "good"


@dataclass(frozen=True)
class LabelledImage:
    """One image of a test split; a good one's `mask_path` is None."""

    name: str  # defect folder / file name
    defect: str  # folder name, "good" for good ones
    category: str  # what the text prompts call it
    image_path: Path | None  # None: synthetic, made from `seed`
    mask_path: Path | None = None
    seed: int = 0
    size: int = 0
    fine: float = 0  # see `sample_from_seed`
    group: str = ""  # the data set's own name of the category: a row of the tables
    mask_above: int = 0  # mask values greater than this are anomalous

    @property
    def good(self) -> bool:
        """Whether the image shows no defect."""
        return self.defect == GOOD

    @property
    def has_truth(self) -> bool:
        """Whether it is known which of its pixels are anomalous."""
        return self.image_path is None or self.good or self.mask_path is not None

    def load(self) -> tuple[Image, NDArray[np.bool_]]:
        """HxWx3 uint8 RGB and its mask bool [H,W]. Raises ImageError or DatasetError."""
        if not self.has_truth:
            raise DatasetError(f"{self.image_path} has no mask: add it or leave the image out.")
        if self.image_path is None:
            sample = sample_from_seed(self.seed, self.size, fine=self.fine)
            return sample.image, sample.mask > 0
        image = self.load_image()
        if self.mask_path is None:
            return image, np.zeros(image.shape[:2], np.bool_)
        mask = read_mask(self.mask_path)
        if mask is None or mask.shape != image.shape[:2]:
            found = "cannot be read" if mask is None else f"is {mask.shape[1]}x{mask.shape[0]}"
            raise DatasetError(
                f"The mask {self.mask_path} {found}, its image is "
                f"{image.shape[1]}x{image.shape[0]}: repair the pair."
            )
        return image, mask > self.mask_above

    def load_image(self) -> Image:
        """HxWx3 uint8 RGB, for images whose mask may be missing. Raises ImageError."""
        if self.image_path is None:
            return sample_from_seed(self.seed, self.size, fine=self.fine).image
        return read_image(self.image_path)


@dataclass(frozen=True)
class Listing:
    """What a layout found in a folder. Paths are not opened, but for KSDD2's masks."""

    layout: str  # its name, a key of `layouts.LAYOUTS`
    images: list[LabelledImage]  # the test split
    train: list[Path] = field(default_factory=list)  # images of the training split
    problems: list[tuple[Path, str]] = field(default_factory=list)  # what keeps it from being whole
    notes: list[str] = field(default_factory=list)  # what was left out or taken for granted


def read_mask(path: Path) -> NDArray[np.uint8] | None:
    """Gray values [H,W] of a mask file of 8 bits, None when it cannot be decoded."""
    try:
        data = np.fromfile(path, np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if len(data) else None
    except (OSError, cv2.error):
        return None
    return None if mask is None else np.asarray(mask, np.uint8)
