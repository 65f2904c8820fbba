"""One row of `bench_latency.py`, measured by a process that does nothing else.

`bench_latency.py` starts it as `python latency_row.py JOB OUT`: two JSON files, what to measure
and what came out. So a cold start is one, a peak of memory belongs to one row, and a row that
takes the process down takes nothing else with it. torch is imported by its own rows alone.

Random weights decide nothing, so what the part is, is planted: `clip_umci` runs as always and its
map is then replaced, by zeros for the good part and by squares for the defective one. Every row
so does the same work, whatever its weights.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Array, Session
from clipsam.runtime.core.errors import ClipSAMError, ProviderError
from clipsam.runtime.pipeline import ClipSAM

PROMPTS = (1, 4, 16)  # of a call of the decoder
GOOD, DEFECTIVE = "good part", "defective part"
FEWEST = 3  # rounds that are counted, however long they take

_CELLS = 4  # squares along a side of the planted map
_LABELS = 1, 2, 3  # of a point, and of the box's corners


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
      kind: "session", "torch-eager", "torch-compile", "flops" or "peak".
      device: a provider of `ClipSAM.open` for sessions, else a torch device.
      bundle: folder of the bundle that sessions open.
      preset, weights, random_weights: what the PyTorch rows load; see
        `export/graphs/checkpoints.py`.
      image_size: (height, width) of the part's picture in pixels.
      boxes: squares planted in the map of the defective part.
      rounds, warmup, max_seconds: how often a call is timed after how many that are dropped, and
        when that ends early (with no fewer than `FEWEST` rounds).
      matmul: side of the square matrices of the peak; 0 is what suits the device.
      started: `time.monotonic()` when the process was started.
    """

    kind: str
    device: str
    precision: str
    bundle: str
    preset: str
    weights: Mapping[str, str] = field(default_factory=dict)
    random_weights: int | None = None
    threads: int | None = None
    image_size: tuple[int, int] = (1024, 1024)
    boxes: int = 4
    rounds: int = 50
    warmup: int = 10
    max_seconds: float = 60.0
    matmul: int = 0
    started: float = 0.0


class Subject(Protocol):
    """Something that inspects parts, and its stages one by one."""

    def plant(self, boxes: int) -> None:
        """From now on the map has this many squares."""

    def inspect(self, image: Array) -> int:
        """One whole inspection, result on the host; returns the number of prompts."""

    def stages(self, image: Array) -> dict[str, Callable[[], object]]:
        """Calls that return when the stage is done, by the stage's name."""


class PlantedSession(Session):
    """`clip_umci`, run as always; then its map is the planted one."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.provider, self.precision = inner.provider, inner.precision
        self.rough = planted_map(int(inner.inputs["image"].shape[1]), 0)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.inner.run(feeds)
        return {"rough": self.rough[None].copy()}

    def close(self) -> None:
        self.inner.close()


class SessionSubject:
    """The engine itself, with whatever runs its three graphs."""

    def __init__(self, bundle: Any, sessions: Mapping[str, Session]) -> None:
        self.bundle = bundle
        self.planted = PlantedSession(sessions["clip_umci"])
        self.model = ClipSAM(bundle, {**sessions, "clip_umci": self.planted})
        self.sessions = dict(sessions)

    def plant(self, boxes: int) -> None:
        self.planted.rough = planted_map(len(self.planted.rough), boxes)

    def inspect(self, image: Array) -> int:
        return self.model.inspect(image, self.bundle.manifest.categories[0]).prompts

    def stages(self, image: Array) -> dict[str, Callable[[], object]]:
        clip, encoder, decoder = (
            self.sessions[name] for name in ("clip_umci", "sam_encoder", "sam_decoder")
        )
        manifest = self.bundle.manifest
        sizes = int(clip.inputs["image"].shape[1]), int(encoder.inputs["image"].shape[1])
        small, framed = (np.ascontiguousarray(cv2.resize(image, (s, s)))[None] for s in sizes)
        text = self.bundle.text(manifest.categories[0])[None]
        valid = np.array([sizes[1], sizes[1]], np.int64)
        embedding = encoder.run({"image": framed, "valid_size": valid})["embedding"]
        calls: dict[str, Callable[[], object]] = {
            "clip_umci": lambda: clip.run({"image": small, "text": text}),
            "sam_encoder": lambda: encoder.run({"image": framed, "valid_size": valid}),
        }
        for prompts in PROMPTS:
            coords, labels = prompt_arrays(prompts, manifest.prompts.num_points, sizes[1])
            feeds = {"embedding": embedding, "point_coords": coords, "point_labels": labels}
            calls[f"sam_decoder {prompts}"] = lambda feeds=feeds: decoder.run(feeds)
        return calls


def planted_map(size: int, boxes: int) -> NDArray[np.float32]:
    """A map [size,size] with `boxes` squares of ones, at most 16, that do not touch."""
    if not 0 <= boxes <= _CELLS**2:
        raise ValueError(f"boxes={boxes} must lie in 0..{_CELLS**2}.")
    rough = np.zeros((size, size), np.float32)
    cell = size // _CELLS
    for number in range(boxes):
        top, left = (cell * i + cell // 4 for i in divmod(number, _CELLS))
        rough[top : top + cell // 2, left : left + cell // 2] = 1
    return rough


def prompt_arrays(prompts: int, points: int, size: int) -> tuple[Array, Array]:
    """Coordinates float32 [Q,P,2] in SAM's frame and labels float32 [Q,P]: points, then a box."""
    rng = np.random.default_rng(0)
    coords = np.sort(rng.uniform(0, size, (prompts, points + 2, 2)).astype(np.float32), axis=1)
    point, *corners = _LABELS
    return coords, np.tile(np.array([point] * points + corners, np.float32), (prompts, 1))


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """A picture HxWx3; its content changes no time."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def timed(call: Callable[[], object], job: Job) -> list[float]:
    """Milliseconds of every counted round; at least one round is dropped before them."""
    start = time.perf_counter()
    for _ in range(max(job.warmup, 1)):
        call()
        if time.perf_counter() - start > job.max_seconds:
            break
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < job.rounds:
        before = time.perf_counter()
        call()
        times.append((time.perf_counter() - before) * 1e3)
        if time.perf_counter() - start > job.max_seconds and len(times) >= FEWEST:
            break
    return times


def measure(job: Job, load: Callable[[Job], Subject]) -> dict[str, Any]:
    """Cold start, stages and whole inspections of what `load` loads."""
    image = picture(*job.image_size)
    subject = load(job)
    first = {}
    for part, boxes in ((GOOD, 0), (DEFECTIVE, job.boxes)):
        subject.plant(boxes)
        before = time.monotonic()
        if (found := subject.inspect(image)) != boxes:
            raise RuntimeError(f"the {part} was given {found} prompts, not {boxes}")
        first[part] = time.monotonic() - before
        if part == GOOD:
            cold_start = time.monotonic() - job.started
    times = {name: timed(call, job) for name, call in subject.stages(image).items()}
    for part, boxes in ((GOOD, 0), (DEFECTIVE, job.boxes)):
        subject.plant(boxes)
        times[part] = timed(lambda: subject.inspect(image), job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux: kilobytes
    return {
        "times_ms": times,
        "cold_start_s": cold_start,
        "first_defective_s": first[DEFECTIVE],
        "peak_rss_bytes": peak,
    }


def load_session(job: Job) -> Subject:
    """The bundle on a provider, as a user opens it."""
    model = ClipSAM.open(job.bundle, job.device, job.threads, job.precision)
    return SessionSubject(model.bundle, model._sessions)


def run(job: Job) -> dict[str, Any]:
    """Do the job; {"not_run": reason} where something is not installed or not there."""
    if job.threads is not None:
        cv2.setNumThreads(job.threads)
    try:
        if job.kind == "session":
            return measure(job, load_session)
        import latency_torch

        return latency_torch.run(job)
    except ClipSAMError as error:
        return {"not_run": str(error)}
    except ModuleNotFoundError as error:
        return {"not_run": f"{error.name} is not installed."}


def need_cuda(available: bool) -> None:
    """Raise ProviderError where torch has no GPU."""
    if not available:
        raise ProviderError("PyTorch finds no CUDA device here.")


def main(arguments: list[str]) -> int:
    """`latency_row.py JOB OUT`."""
    values = json.loads(Path(arguments[0]).read_text())
    job = Job(**{**values, "image_size": tuple(values["image_size"])})
    Path(arguments[1]).write_text(json.dumps(run(job)))
    return 0


def to_json(job: Job) -> str:
    """The text of a job's file."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    # The torch rows import what is here by name: one module, not two.
    sys.modules["latency_row"] = sys.modules["__main__"]
    raise SystemExit(main(sys.argv[1:]))
