"""What inspects parts in `bench_latency.py`, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from clipsam.runtime.backends.base import Array, DeviceArray, Feeds, Session, SessionWrapper
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.sam import Masks
from harness.agreement import Outcome
from harness.clock import Clock
from harness.planted import planted_map


@dataclass(frozen=True)
class Plan:
    """What every row does.

    Attributes:
      preset, weights, random_weights: what the PyTorch rows load; see
        `export/graphs/checkpoints.py`.
      text_of: a bundle's folder, whose first category the PyTorch rows look for as well.
      image_size: (height, width) of the part's picture in pixels.
      boxes: squares planted in the map of the defective part.
      repeats, warmup, seconds: how often a part is inspected after how many that are dropped (one
        at least), and when either ends early.
    """

    preset: str
    weights: Mapping[str, str] = field(default_factory=dict)
    random_weights: int | None = None
    text_of: str = ""
    image_size: Sequence[int] = (1024, 1024)
    boxes: int = 4
    repeats: int = 10
    warmup: int = 3
    seconds: float = 60.0


class Subject(Protocol):
    """Something that inspects parts and times its graphs."""

    clock: Clock

    def plant(self, boxes: int) -> None:
        """From now on the map has this many squares."""

    def inspect(self, image: Image) -> int:
        """One whole inspection, result on the host; returns the number of prompts."""

    def outcome(self, image: Image) -> Outcome:
        """Inspect, and return all that was found."""


class TimedSession(SessionWrapper):
    """A session whose runs are a stage, and which remembers what it returned last."""

    def __init__(self, inner: Session, name: str, clock: Clock) -> None:
        super().__init__(inner)
        self.name, self.clock = name, clock
        self.keeps = inner.keeps
        self.returned: dict[str, Array] = {}

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        with self.clock(self.name):
            self.returned = self.inner.run(feeds, wanted)
        return self.returned

    def _keep(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, DeviceArray]:
        with self.clock(self.name):
            return self.inner.keep(feeds, wanted)


class PlantedSession(SessionWrapper):
    """`clip_umci`, run as always; then its map is the planted one."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self.keeps = inner.keeps  # so that it is fed what lies on the device
        self.rough = planted_map(int(inner.inputs["image"].shape[1]), 0)

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        return {**self.inner.run(feeds, wanted), "rough": self.rough[None].copy()}


class EngineSubject:
    """The engine itself, with whatever runs its three graphs."""

    def __init__(self, bundle: Any, sessions: Mapping[str, Session]) -> None:
        self.clock = Clock()
        self.timed = {n: TimedSession(s, n, self.clock) for n, s in sessions.items()}
        self.planted = PlantedSession(self.timed["clip_umci"])
        self.model = ClipSAM(bundle, {**self.timed, "clip_umci": self.planted})
        self.category = bundle.manifest.categories[0]

    def plant(self, boxes: int) -> None:
        self.planted.rough = planted_map(len(self.planted.rough), boxes)

    def inspect(self, image: Image) -> int:
        return self.model.inspect(image, self.category).prompts

    def outcome(self, image: Image) -> Outcome:
        result = self.model.inspect(image, self.category, norm="fixed")
        decoded = self.timed["sam_decoder"].returned
        side = int(self.timed["sam_encoder"].inputs["image"].shape[1])
        masks = Masks(
            decoded["logits"], decoded["scores"], Geometry(image.shape[0], image.shape[1], side)
        )
        return Outcome(
            self.timed["clip_umci"].returned["rough"][0],
            np.stack([np.packbits(mask) for mask, _ in masks.binary()]),
            decoded["scores"],
            result.score_map,
            result.verdict,
        )
