"""Tiny data sets in every layout, written by hand: a bright square is the defect."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.data.datasets import LabelledImage, check_paired, open_dataset

HEIGHT, WIDTH = 40, 60
SQUARE = (slice(8, 16), slice(20, 32))  # 96 pixels
SQUARE_AREA = 96


def write(path: Path, array: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def picture(defective: bool = False, shade: int = 90) -> NDArray[np.uint8]:
    image = np.full((HEIGHT, WIDTH, 3), shade, np.uint8)
    if defective:
        image[SQUARE] = 230
    return image


def square(value: int = 255) -> NDArray[np.uint8]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[SQUARE] = value
    return mask


def make_mvtec(root: Path, defects: tuple[str, ...] = ("bent", "scratch"), images: int = 2) -> Path:
    """One category: `images` good ones and as many of each defect."""
    for number in range(images):
        name = f"{number:03d}.png"
        write(root / "train" / "good" / name, picture())
        write(root / "test" / "good" / name, picture())
        for defect in defects:
            write(root / "test" / defect / name, picture(True))
            write(root / "ground_truth" / defect / f"{number:03d}_mask.png", square())
    return root


def make_visa(root: Path, categories: tuple[str, ...] = ("candle", "pcb1")) -> Path:
    """VisA as published: masks hold small numbers."""
    lines = ["object,split,label,image,mask"]
    for category in categories:
        images = f"{category}/Data/Images"
        for split, number in (("train", 0), ("test", 1), ("test", 2)):
            name = f"{images}/Normal/{number:04d}.JPG"
            write(root / name, picture())
            lines.append(f"{category},{split},normal,{name},")
        for number in range(2):
            name = f"{images}/Anomaly/{number:03d}.JPG"
            mask = f"{category}/Data/Masks/Anomaly/{number:03d}.png"
            write(root / name, picture(True))
            write(root / mask, square(number + 1))
            lines.append(f"{category},test,anomaly,{name},{mask}")
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir(parents=True)
    table.write_text("\n".join(lines) + "\n")
    return root


def make_visa_pytorch(root: Path) -> Path:
    """VisA_pytorch/1cls: MVTec's folders, masks without "_mask"."""
    category = root / "1cls" / "candle"
    write(category / "train" / "good" / "0000.JPG", picture())
    write(category / "test" / "good" / "0001.JPG", picture())
    write(category / "test" / "bad" / "000.JPG", picture(True))
    write(category / "ground_truth" / "bad" / "000.png", square())
    return root


def make_mtd(root: Path) -> Path:
    """Masks beside the images; gray at the edge, one of MT_Uneven empty."""
    gray = square()
    gray[SQUARE[0].stop, SQUARE[1]] = 100  # not defective: below 128
    masks = {"MT_Free": square(0), "MT_Crack": gray, "MT_Uneven": square(0)}
    for folder, mask in masks.items():
        for number in range(2):
            place = root / folder / "Imgs"
            write(place / f"exp1_num_{number}.jpg", picture(folder != "MT_Free"))
            write(place / f"exp1_num_{number}.png", mask)
    write(root / "MT_Uneven" / "Imgs" / "exp1_num_1.png", square())
    return root


def make_ksdd2(root: Path) -> Path:
    """Good and defective images side by side, told apart by their masks; a stray copy in train."""
    for split, kinds in (("train", (0, 255, 0)), ("test", (0, 0, 255, 0))):
        for number, value in enumerate(kinds):
            write(root / split / f"{10000 + number}.png", picture(value > 0))
            write(root / split / f"{10000 + number}_GT.png", square(value))
    for suffix in ("", "_GT"):
        write(root / "train" / f"10001{suffix} (copy).png", picture(True))
    return root


def find_dataset(
    root: Path, category: str | None = None, layout: str | None = None
) -> list[LabelledImage]:
    """The test split of a folder, every defective image with its mask."""
    listing = open_dataset(root, category, layout)
    check_paired(listing)
    return listing.images
