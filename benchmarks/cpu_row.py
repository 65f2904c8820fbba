"""One row of `bench_cpu.py` and `bench_cpu_growth.py`: a process that takes turns with others.

`cpu_workers.py` starts it as `python cpu_row.py JOB` (a JSON file). It loads its models, says
"ready" on its standard output, and then answers one line of JSON with one, until its standard input
ends: a row's rounds so lie between those of the others. torch is imported by its own rows alone.

As in `latency_row.py`, what the part is, is planted into the map: every row does the same work.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np
from latency_row import Job, SessionSubject, picture, planted_map
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Array, Session
from clipsam.runtime.core.errors import ClipSAMError
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.prompts import PromptOptions
from clipsam.runtime.stages.sam import Masks

GRAPHS = ("clip_umci", "sam_encoder", "sam_decoder")
WHOLE, OUTSIDE, ALL_GRAPHS, MATRIX = "whole", "outside the graphs", "all graphs", "matrix product"
Stages = dict[str, tuple[float, float]]  # stage -> wall clock and CPU time, milliseconds

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


@dataclass(frozen=True)
class CpuJob(Job):
    """What a row's process loads; see `latency_row.Job`, whose device is "cpu".

    Attributes:
      kind: "session", "torch-eager", "torch-sdpa", "torch-compile" or "matrix".
      keep_pages: glibc's malloc keeps what is freed and never maps (see `keep_freed_pages`).
    """

    keep_pages: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a row said of one picture whose defects are planted.

    Attributes:
      rough: float32 [S,S], CLIP's and UMCI's own map, which the planted one replaced.
      packed: uint8 [3q,B], SAM's masks of every prompt in turn, each by `np.packbits`: kept so,
        they do not show in the row's peak of memory.
      scores: float32 [q,3].
      final: float32 [H,W], the map on the fixed scale.
      verdict: "good" or "anomalous".
    """

    rough: NDArray[np.float32]
    packed: NDArray[np.uint8]
    scores: NDArray[np.float32]
    final: NDArray[np.float32]
    verdict: str

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """Every mask, bool [H,W]."""
        for mask in self.packed:
            flat = np.unpackbits(mask, count=self.final.size)
            yield flat.reshape(self.final.shape).astype(np.bool_)

    def save(self, path: Path) -> None:
        """Write it as `.npz`."""
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read what `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("rough", "packed", "scores", "final")}
            return cls(**arrays, verdict=str(file["verdict"]))


class StageClock:
    """Wall clock and CPU time (of all threads) of named stages; one entered twice adds up."""

    def __init__(self) -> None:
        self.stages: Stages = {}
        self._started: dict[str, tuple[float, float]] = {}

    def start(self, name: str) -> None:
        self._started[name] = time.perf_counter(), time.process_time()

    def stop(self, name: str) -> None:
        wall, cpu = self._started.pop(name)
        before = self.stages.get(name, (0.0, 0.0))
        self.stages[name] = (
            before[0] + (time.perf_counter() - wall) * 1e3,
            before[1] + (time.process_time() - cpu) * 1e3,
        )

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.start(name)
        yield
        self.stop(name)


class Subject(Protocol):
    """Something that inspects parts and times its graphs. Its `plant` is `SessionSubject`'s."""

    clock: StageClock

    def plant_map(self, rough: NDArray[np.float32]) -> None:
        """From now on this is the map [S,S]."""

    def inspect(self, image: Image) -> int:
        """One whole inspection, result on the host; returns the number of prompts."""

    def outcome(self, image: Image) -> Outcome:
        """Inspect, and return all that was found."""

    @property
    def map_size(self) -> int:
        """S."""


class ClockedSession(Session):
    """A session whose runs are a stage, and which remembers what it returned last."""

    def __init__(self, inner: Session, name: str, clock: StageClock) -> None:
        self.inner, self.name, self.clock = inner, name, clock
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.provider, self.precision = inner.provider, inner.precision
        self.returned: dict[str, Array] = {}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self.clock(self.name):
            self.returned = self.inner.run(feeds)
        return self.returned

    def close(self) -> None:
        self.inner.close()


class ClockedSessions(SessionSubject):
    """The engine itself, whatever runs its graphs."""

    def __init__(self, bundle: Any, sessions: Mapping[str, Session]) -> None:
        self.clock = StageClock()
        self.clocked = {
            name: ClockedSession(session, name, self.clock) for name, session in sessions.items()
        }
        super().__init__(bundle, self.clocked)

    def plant_map(self, rough: NDArray[np.float32]) -> None:
        self.planted.rough = rough

    @property
    def map_size(self) -> int:
        return len(self.planted.rough)

    def outcome(self, image: Image) -> Outcome:
        result = self.model.inspect(image, self.bundle.manifest.categories[0], norm="fixed")
        height, width = image.shape[:2]
        decoded = self.clocked["sam_decoder"].returned
        masks = Masks(
            decoded["logits"],
            decoded["scores"],
            Geometry(height, width, int(self.clocked["sam_encoder"].inputs["image"].shape[1])),
        )
        return Outcome(
            self.clocked["clip_umci"].returned["rough"][0],
            np.stack([np.packbits(mask) for mask, _ in masks.binary()]),
            decoded["scores"],
            result.score_map,
            result.verdict,
        )


def planted_regions(size: int, regions: int) -> NDArray[np.float32]:
    """A map [size,size] with that many squares of ones that do not touch; any number that fits.

    Up to 16 they are those of `planted_map`.
    """
    if regions <= 16:
        return planted_map(size, regions)
    side = math.ceil(math.sqrt(regions))
    cell = size // side
    if cell < 3:
        raise ValueError(f"{regions} regions do not fit in a map of {size} x {size}.")
    rough = np.zeros((size, size), np.float32)
    edge = cell - max(1, cell // 3)
    for number in range(regions):
        top, left = (cell * i for i in divmod(number, side))
        rough[top : top + edge, left : left + edge] = 1
    return rough


def turn(subject: Subject, image: Image, boxes: int, repeats: int) -> list[Stages]:
    """Inspect `repeats` times; the stages of every inspection.

    Raises RuntimeError when a part was not given `boxes` prompts: the rows then do other work.
    """
    calls = []
    for _ in range(repeats):
        subject.clock.stages = {}
        wall, cpu = time.perf_counter(), time.process_time()
        found = subject.inspect(image)
        whole = (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3
        if found != boxes:
            raise RuntimeError(f"the part was given {found} prompts, not {boxes}")
        stages = subject.clock.stages
        graphs = (
            sum(stages[name][0] for name in stages),
            sum(stages[name][1] for name in stages),
        )
        outside = whole[0] - graphs[0], whole[1] - graphs[1]
        calls.append({WHOLE: whole, **stages, ALL_GRAPHS: graphs, OUTSIDE: outside})
    return calls


def memory_mb() -> dict[str, float]:
    """Resident memory of this process, now and at most, in 10^6 bytes (Linux).

    Not `getrusage`: what a child's begins with is its parent's.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    names = {"rss_mb": "VmRSS", "peak_rss_mb": "VmHWM"}
    return {name: int(fields[field].split()[0]) * 1024 / 1e6 for name, field in names.items()}


def keep_freed_pages() -> None:
    """Have glibc's malloc map nothing and give nothing back (before torch allocates).

    By default every large buffer of PyTorch's is mapped and unmapped again, and the kernel clears
    each of its pages anew at every layer.
    """
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        if libc.mallopt(option, value) != 1:
            raise RuntimeError("glibc's malloc refused mallopt")


def load(job: CpuJob) -> Subject:
    """The row's subject."""
    if job.kind == "session":
        model = ClipSAM.open(job.bundle, "cpu", job.threads, job.precision)
        return ClockedSessions(model.bundle, model._sessions)
    import cpu_torch

    return cpu_torch.load(job)


def answers(job: CpuJob) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Load, inspect a first good part, and return what answers requests from then on."""
    if job.threads is not None:
        cv2.setNumThreads(job.threads)
    if job.keep_pages:
        keep_freed_pages()
    if job.kind == "matrix":
        import cpu_matrix

        return cpu_matrix.answers(job)
    subject = load(job)
    image = picture(*job.image_size)
    subject.plant_map(planted_regions(subject.map_size, 0))
    subject.inspect(image)
    first = {"cold_start_s": time.monotonic() - job.started, **memory_mb()}

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        if request["ask"] == "first":
            return first
        regions = request["regions"]
        subject.plant_map(planted_regions(subject.map_size, regions))
        if request["ask"] == "outcome":
            shown = read_image(request["image"]) if request["image"] else image
            subject.outcome(shown).save(Path(request["save"]))
            return memory_mb()
        shown = image
        if request.get("image_size", image.shape[:2]) != image.shape[:2]:
            shown = picture(*request["image_size"])
        boxes = min(regions, PromptOptions().max_boxes)
        return {"calls": turn(subject, shown, boxes, request["repeats"]), **memory_mb()}

    return answer


def serve(job: CpuJob, requests: TextIO, replies: TextIO) -> None:
    """Answer until there are no more requests; the first reply is to none."""

    def reply(value: Mapping[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        answer = answers(job)
    except ClipSAMError as error:
        return reply({"not_run": str(error)})
    except ModuleNotFoundError as error:
        return reply({"not_run": f"{error.name} is not installed."})
    reply({})
    for line in requests:
        reply(answer(json.loads(line)))
    return None


def main(arguments: list[str]) -> int:
    """`cpu_row.py JOB`."""
    values = json.loads(Path(arguments[0]).read_text())
    job = CpuJob(**{**values, "image_size": tuple(values["image_size"])})
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(job, sys.stdin, replies)
    return 0


if __name__ == "__main__":
    # The torch rows import what is here by name: one module, not two.
    sys.modules["cpu_row"] = sys.modules["__main__"]
    raise SystemExit(main(sys.argv[1:]))
