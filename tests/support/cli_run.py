"""Running `clipsam inspect` on the toy bundle, for the tests of the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipsam.runtime.cli import main
from support.toy_bundle import bright_square, plain_part

NAMES = ["bad.png", "good.jpg", "line 1/part.v2.BMP", "line 1/äöü/ok.tiff"]


@dataclass
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


def runner(toy: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `clipsam inspect TOY …` in this process."""

    def inspect(*args: object) -> Ran:
        capfd.readouterr()
        code = main(["inspect", str(toy), *map(str, args), "--threads", "1"])
        return Ran(code, *capfd.readouterr())

    return inspect


def make_images(folder: Path) -> Path:
    """A tree of NAMES: two defects, two good parts; and a file that is no image."""
    (folder / "line 1/äöü").mkdir(parents=True)
    save(folder / "bad.png", bright_square())
    save(folder / "good.jpg", plain_part(100, 90, 30))
    save(folder / "line 1/part.v2.BMP", bright_square(64, 64, (10, 10, 30, 30)))
    save(folder / "line 1/äöü/ok.tiff", plain_part(50, 60, 20))
    (folder / "notes.txt").write_text("no image")
    return folder


def save(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image file by Pillow, in the format of its suffix."""
    Image.fromarray(image).save(path)


def lines(output: Path) -> list[dict[str, Any]]:
    """The lines of `results.jsonl`."""
    return [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]


def listing(folder: Path) -> list[str]:
    """Every file below `folder`."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
