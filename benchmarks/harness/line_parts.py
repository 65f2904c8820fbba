"""The parts of `bench_line.py`, whose corner says what is planted for them, and its processes.

What a user imports to inspect a part comes first in a process and is timed; what plants parts is
imported after that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipsam.runtime import ClipSAM

KINDS = ("good", "defective")
PICTURES = 4  # of each kind, no two alike
_CORNER = 8  # the mark is this share of a side: white on a defective part, black on a good one


def plant(model: ClipSAM, boxes: int) -> ClipSAM:
    """The model with CLIP's map replaced by the one that a picture's mark asks for."""
    import numpy as np

    from clipsam.runtime import ClipSAM
    from clipsam.runtime.backends.base import Array, Session, SessionWrapper
    from harness.planted import planted_map

    class MarkedSession(SessionWrapper):
        def __init__(self, inner: Session) -> None:
            super().__init__(inner)
            size = int(inner.inputs["image"].shape[1])
            self.maps = np.stack([planted_map(size, 0), planted_map(size, boxes)])
            self.at = size // _CORNER // 2

        def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
            found = self.inner.run(feeds, wanted)
            marks = feeds["image"][:, self.at, self.at].mean(1) > 127
            return {**found, "rough": self.maps[marks.astype(int)]}

    marked = MarkedSession(model.sessions["clip_umci"])
    return ClipSAM(model.bundle, {**model.sessions, "clip_umci": marked})


def write_parts(folder: Path, height: int, width: int) -> None:
    """good-0.jpg … and defective-0.jpg …: pictures of noise with their mark."""
    import cv2
    import numpy as np

    from harness.planted import picture

    for kind, mark in zip(KINDS, (0, 255), strict=True):
        for number in range(PICTURES):
            image = np.roll(picture(height, width), number * 37, (0, 1))
            image[: height // _CORNER, : width // _CORNER] = mark
            cv2.imwrite(str(folder / f"{kind}-{number}.jpg"), image)


def schedule(folder: Path, parts: int, share: float) -> list[Path]:
    """Files of so many parts, `share` percent of them defective, evenly spread; the last is."""
    paths = []
    for number in range(1, parts + 1):
        bad = math.floor(number * share / 100) > math.floor((number - 1) * share / 100)
        paths.append(folder / f"{KINDS[bad]}-{number % PICTURES}.jpg")
    return paths


def cold_start(
    *, threads: int | None, started: float, opened: list[Any], boxes: int, folder: str
) -> dict[str, float]:
    """A task: seconds from the start of the process to each step, and its CPU seconds until the
    first verdicts. `opened` are bundle, provider and precision."""
    found: dict[str, float] = {}

    def note(name: str) -> None:
        found[name] = time.monotonic() - started

    note("python_s")
    from clipsam.runtime import ClipSAM, read_image

    note("imported_s")
    bundle, provider, precision = opened
    with ClipSAM.open(bundle, provider, threads, precision) as model:
        note("opened_s")
        planted = plant(model, boxes)
        planting = time.monotonic() - started - found["opened_s"]  # no part of a start
        for kind in KINDS:
            planted.inspect(read_image(Path(folder) / f"{kind}-0.jpg"))
            note(f"first_{kind}_s")
            found[f"first_{kind}_s"] -= planting
            found[f"cpu_first_{kind}_s"] = time.process_time()
    return found


def inspect_all(
    *,
    threads: int | None,
    started: float,
    opened: Sequence[Any],
    boxes: int,
    folder: str,
    parts: int,
    line: bool,
) -> dict[str, float]:
    """A task, for its peak of memory: parts, every other one defective, one by one or in a line."""
    from clipsam.runtime import ClipSAM, read_image

    bundle, provider, precision = opened
    with ClipSAM.open(bundle, provider, threads, precision) as model:
        planted, paths = plant(model, boxes), schedule(Path(folder), parts, 50)
        if line:
            for part in planted.inspect_many(paths):
                part.result()
        else:
            for path in paths:
                planted.inspect(read_image(path))
    return {}
