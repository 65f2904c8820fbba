"""`clipsam dataset check`: a whole set passes, every kind of damage is named."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.dataset_folders import (
    HEIGHT,
    WIDTH,
    make_ksdd2,
    make_mtd,
    make_mvtec,
    make_visa,
    make_visa_pytorch,
    picture,
    square,
    write,
)

from clipsam.research.data.datasets import open_dataset
from clipsam.research.dataset_check import check
from clipsam.runtime.cli import main


@pytest.mark.parametrize("make", [make_mvtec, make_visa, make_visa_pytorch, make_mtd, make_ksdd2])
def test_a_whole_set_has_no_problems(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", "check", str(make(tmp_path / "set"))]) == 0
    assert "no problems" in capsys.readouterr().out


def test_the_check_prints_counts_and_writes_them_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, report = make_mvtec(tmp_path / "nut"), tmp_path / "report.json"
    assert main(["dataset", "check", str(root), "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "| nut | bent | 2 | 2 |" in printed
    assert "| nut | good | 2 |  |" in printed
    assert "2 images in the training split" in printed
    written = json.loads(report.read_text())
    assert {"category": "nut", "defect": "bent", "images": 2, "masks": 2} in written["counts"]
    assert written["layout"] == "mvtec"
    assert written["problems"] == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def rotated_jpeg(path: Path) -> None:
    """A JPEG whose EXIF says that the camera stood on its side: decoded, it is 40x60 upright."""
    done, data = cv2.imencode(".jpg", picture())
    assert done
    tag = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # orientation: turn right
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<IH", 8, 1) + tag + bytes(4)
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    jpeg = data.tobytes()
    path.write_bytes(jpeg[:2] + segment + jpeg[2:])


def smooth(path: Path) -> None:
    ramp = np.linspace(0, 255, HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)
    write(path, ramp)


BENT, MASKS = "test/bent", "ground_truth/bent"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "unpaired image": (lambda r: (r / MASKS / "000_mask.png").unlink(), "000.png has no mask"),
    "unpaired mask": (lambda r: (r / BENT / "000.png").unlink(), "is a mask without an image"),
    "masks of nothing": (
        lambda r: write(r / "ground_truth/dent/000_mask.png", square()),
        "dent holds masks of a defect that has no images",
    ),
    "wrong size": (
        lambda r: write(r / MASKS / "000_mask.png", square()[:-3]),
        "is 60x37, its image is 60x40",
    ),
    "empty mask": (lambda r: write(r / MASKS / "000_mask.png", square(0)), "is empty"),
    "inverted mask": (
        lambda r: write(r / MASKS / "000_mask.png", np.full((HEIGHT, WIDTH), 9, np.uint8)),
        "marks every pixel",
    ),
    "smoothed mask": (lambda r: smooth(r / MASKS / "000_mask.png"), "gray levels"),
    "unreadable mask": (
        lambda r: (r / MASKS / "000_mask.png").write_bytes(b"no picture"),
        "000_mask.png cannot be read",
    ),
    "truncated image": (lambda r: truncate(r / BENT / "000.png"), "is truncated"),
    "truncated training image": (
        lambda r: truncate(r / "train/good/000.png"),
        "train/good/000.png is truncated",
    ),
    "empty file": (lambda r: (r / "test/good/000.png").write_bytes(b""), "is empty (0 bytes)"),
    "foreign file": (lambda r: (r / "test/good/000.png").write_bytes(b"?"), "not an image"),
    "16 bits": (
        lambda r: cv2.imwrite(str(r / "test/good/000.png"), np.zeros((9, 9), np.uint16)),
        "16 bits a channel",
    ),
    "same name twice": (
        lambda r: write(r / BENT / "000.jpg", picture(True)),
        "has the same name as 000.jpg",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damage_is_named(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(tmp_path / "nut")
    harm, sentence = DAMAGE[damage]
    harm(root)
    assert main(["dataset", "check", str(root)]) == 1
    printed = capsys.readouterr().out
    assert sentence in printed
    assert "1 problems" in printed


def test_a_rotated_photograph_is_compared_as_it_is_decoded(tmp_path: Path) -> None:
    root = tmp_path / "nut"
    write(root / "test" / "good" / "0.png", picture())
    (root / "test" / "bent").mkdir()
    rotated_jpeg(root / "test" / "bent" / "0.jpg")
    write(root / "ground_truth" / "bent" / "0_mask.png", np.ascontiguousarray(square().T))
    assert check(open_dataset(root)).problems == []
    write(root / "ground_truth" / "bent" / "0_mask.png", square())
    assert "is 60x40, its image is 40x60" in check(open_dataset(root)).problems[0][1]


def test_a_file_missing_of_visa_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_visa(tmp_path / "VisA")
    (root / "candle/Data/Images/Normal/0001.JPG").unlink()
    (root / "candle/Data/Masks/Anomaly/000.png").unlink()
    assert main(["dataset", "check", str(root)]) == 1
    printed = capsys.readouterr().out
    assert "0001.JPG is listed in 1cls.csv, but there is no such file" in printed
    assert "Anomaly/000.JPG has no mask" in printed


def test_known_quirks_of_the_magnetic_tiles_are_a_note(tmp_path: Path) -> None:
    root = make_mtd(tmp_path / "mtd_set")
    report = check(open_dataset(root))
    assert any(note.startswith("1 masks of MT_Uneven are empty") for note in report.notes)
    write(root / "MT_Crack" / "Imgs" / "exp1_num_0.png", square(100))
    problems = check(open_dataset(root)).problems
    assert [problem for _, problem in problems] == ["is empty: no pixel is marked above 127"]


def test_a_folder_without_masks_is_whole_and_says_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "parts" / "good" / "a.jpg", picture())
    write(tmp_path / "parts" / "crack" / "b.jpg", picture(True))
    assert main(["dataset", "check", str(tmp_path / "parts")]) == 0
    assert "no defect has a mask: pixel figures leave them out" in capsys.readouterr().out


def test_no_data_set_and_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "check", str(tmp_path)]) == 1
    assert "is no data set" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["dataset", "count", str(tmp_path)])
    assert caught.value.code == 2
