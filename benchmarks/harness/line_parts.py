"""The parts of `bench_line.py`: pictures whose corner says what is planted for them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clipsam.runtime import ClipSAM, Result
from clipsam.runtime.backends.base import Array, Session
from harness.planted import Wrapped, picture, planted_map

KINDS = ("good", "defective")
PICTURES = 4  # of each kind, no two alike
_CORNER = 8  # the mark is this share of a side: white on a defective part, black on a good one
TOLERANCE = 1e-5  # of a map, for a batch of several


class MarkedSession(Wrapped):
    """`clip_umci`, run as always; then the maps are those that the marks ask for."""

    def __init__(self, inner: Session, boxes: int) -> None:
        super().__init__(inner)
        size = int(inner.inputs["image"].shape[1])
        self.maps = np.stack([planted_map(size, 0), planted_map(size, boxes)])
        self.at = size // _CORNER // 2

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        found = self.inner.run(feeds, wanted)
        marks = feeds["image"][:, self.at, self.at].mean(1) > 127
        return {**found, "rough": self.maps[marks.astype(int)]}


class Asleep(Wrapped):
    """Waits instead of computing, and then answers what was computed once."""

    def __init__(self, inner: Session, milliseconds: float) -> None:
        super().__init__(inner)
        self.seconds = milliseconds / 1e3
        self.answers: dict[Any, dict[str, Array]] = {}

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        shapes = tuple(array.shape for array in feeds.values())
        if shapes not in self.answers:
            self.answers[shapes] = self.inner.run(feeds, wanted)
        time.sleep(self.seconds * len(feeds.get("text", [0])))  # as long for each of a batch
        return {name: array.copy() for name, array in self.answers[shapes].items()}


def plant(model: ClipSAM, boxes: int, asleep: Sequence[float] | None = None) -> ClipSAM:
    """The model with marks obeyed; with `asleep`, engines that wait (CLIP, SAM's encoder) in ms."""
    sessions = dict(model.sessions)
    if asleep is not None:
        for name, wait in zip(("clip_umci", "sam_encoder"), asleep, strict=True):
            sessions[name] = Asleep(sessions[name], wait)
        sessions["sam_decoder"] = Asleep(sessions["sam_decoder"], 0)
    sessions["clip_umci"] = MarkedSession(sessions["clip_umci"], boxes)
    return ClipSAM(model.bundle, sessions)


def write_parts(folder: Path, height: int, width: int) -> None:
    """good-0.jpg … and defective-0.jpg …: pictures of noise with their mark."""
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


def compare(found: Sequence[Result], expected: Sequence[Result], *, exact: bool) -> float:
    """The largest difference of the maps; AssertionError where it or anything else is too much."""
    worst = 0.0
    assert len(found) == len(expected), f"{len(found)} results of {len(expected)} parts"
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.verdict == other.verdict, f"part {number}: {one.verdict}, not {other.verdict}"
        same = (one.regions, one.prompts, one.refined) == (
            other.regions, other.prompts, other.refined,
        )  # fmt: skip
        assert same or not exact, f"part {number}: other regions"
        difference = float(np.abs(one.score_map - other.score_map).max())
        assert difference <= (0 if exact else TOLERANCE), f"part {number}: off by {difference}"
        assert not exact or np.array_equal(one.mask, other.mask), f"part {number}: another mask"
        worst = max(worst, difference)
    return worst
