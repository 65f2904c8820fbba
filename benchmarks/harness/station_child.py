"""`clipsam watch` for `soak_station.py`: with pictures that kill it, and a camera of our own.

A picture whose first pixel is POISON ends the process with SIGKILL when it is read, as a fault in a
decoder would. The camera FAKE gives frames that show their number, and is lost after those of LOST.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime import stream
from clipsam.runtime.cli import main
from clipsam.runtime.core.stop import heed_stop_signals
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.station.sources import camera

POISON = (255, 0, 255)  # RGB
FAKE = "7"
HEIGHT, WIDTH = 72, 96


def draw(number: int, kind: str) -> Image:
    """A part unlike any other: "good", with a "defect", or "poison"."""
    image = np.random.default_rng(number).integers(20, 50, (HEIGHT, WIDTH, 3), np.uint8)
    if kind == "defect":
        image[20:50, 30:70] = 250
    elif kind == "poison":
        image[0, 0] = POISON
    return image


def read(path: Path | str) -> Image:
    """`read_image`, with a fault."""
    image = read_image(path)
    if tuple(image[0, 0]) == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return image


class Camera:
    """Frames 0 to COUNT - 1, one after another, over as many captures as it is lost."""

    def __init__(self, numbers: range, lost: int) -> None:
        self._numbers = list(numbers)
        step = len(self._numbers) // (lost + 1)
        self._shots = [self._numbers[i * step : (i + 1) * step] for i in range(lost)]
        self._shots.append(self._numbers[lost * step :])
        self._current: list[int] = []
        self._dead = 0

    def __call__(self, address: str) -> Camera:
        if self._shots and self._dead % 3 == 0:  # dead twice before it comes back
            self._current = self._shots.pop(0)
        self._dead += 1
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return bool(self._current)

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        if not self._current:
            return False, np.zeros((1, 1, 3), np.uint8)
        number = self._current.pop(0)
        return True, draw(number, "defect" if number % 20 == 0 else "good")

    def release(self) -> None:
        self._current = []


if __name__ == "__main__":
    first, last, lost, *arguments = sys.argv[1:]
    stream.read_image = read  # type: ignore[attr-defined, assignment]
    camera.open_capture = Camera(range(int(first), int(last)), int(lost))  # type: ignore[assignment]
    heed_stop_signals()
    raise SystemExit(main(arguments))
