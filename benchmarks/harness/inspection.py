"""The process of a row of `bench_latency.py`: whole inspections, with their graphs as stages.

torch is imported by its own rows alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.pipeline import ClipSAM
from harness.clock import Clock, Stages, total
from harness.memory import peak_mb
from harness.planted import DEFECTIVE, GOOD, picture
from harness.rows import Row
from harness.subjects import EngineSubject, Plan, Subject

WHOLE, OUTSIDE = "whole", "outside the graphs"


def load(row: Row, plan: Plan, threads: int | None) -> Subject:
    """The row's subject."""
    if row.kind == "session":
        model = ClipSAM.open(row.bundle, row.device, threads, row.precision)
        return EngineSubject(model.bundle, model.sessions)
    from harness.torch_rows import load_torch

    return load_torch(row, plan, threads)


def measure(
    *,
    threads: int | None,
    started: float,
    row: Mapping[str, Any],
    plan: Mapping[str, Any],
    pictures: Sequence[str | None] = (),
    save: str = "",
) -> dict[str, Any]:
    """A row's task: start, both parts, and what it says of `pictures` (None: a made-up one).

    Returns `cold_start_s` (from the start of the process to the first verdict, of a good part),
    `first_defective_s`, `peak_rss_mb` and `calls`: part -> the stages of every inspection. The
    outcomes are written to `save`/0.npz and so on.
    """
    of_row, of_plan = Row(**row), Plan(**plan)
    if threads is not None:
        cv2.setNumThreads(threads)
    subject = load(of_row, of_plan, threads)
    image = picture(*of_plan.image_size)
    subject.plant(0)
    subject.inspect(image)
    report: dict[str, Any] = {"cold_start_s": time.monotonic() - started, "calls": {}}
    for part, boxes in ((GOOD, 0), (DEFECTIVE, of_plan.boxes)):
        subject.plant(boxes)
        dropped = inspect(subject, image, boxes, max(1, of_plan.warmup), of_plan.seconds)
        if part == DEFECTIVE:
            report["first_defective_s"] = dropped[0][WHOLE][0] / 1e3
        calls = inspect(subject, image, boxes, of_plan.repeats, of_plan.seconds)
        report["calls"][part] = calls
    report["peak_rss_mb"] = peak_mb()
    for number, name in enumerate(pictures):
        shown = image if name is None else read_image(name)
        subject.outcome(shown).save(Path(save) / f"{number}.npz")
    return report


def inspect(
    subject: Subject, image: Image, boxes: int, repeats: int, seconds: float
) -> list[Stages]:
    """Inspect `repeats` times, at least once and no longer than `seconds`; every one's stages.

    Raises RuntimeError when a part was not given `boxes` prompts: rows would do other work.
    """
    calls: list[Stages] = []
    end = time.monotonic() + seconds
    while not calls or (len(calls) < repeats and time.monotonic() < end):
        subject.clock.stages, clock = {}, Clock()
        with clock(WHOLE):
            found = subject.inspect(image)
        if found != boxes:
            raise RuntimeError(f"the part was given {found} prompts, not {boxes}")
        whole, graphs = clock.stages[WHOLE], total(subject.clock.stages)
        outside = whole[0] - graphs[0], whole[1] - graphs[1]
        calls.append({WHOLE: whole, **subject.clock.stages, OUTSIDE: outside})
    return calls
