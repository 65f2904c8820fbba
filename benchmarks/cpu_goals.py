"""The goals of the CPU path, held against the lines of `bench_cpu.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cpu_lines import FLATTERED, Line
from cpu_row import ALL_GRAPHS, OUTSIDE, WHOLE
from latency_row import DEFECTIVE, GOOD

FASTER_DEFECTIVE, FASTER_GOOD, FASTER_FP32 = 4.0, 15.0, 1.6  # times PyTorch eager fp32
MASK_IOU = 0.98
SHARE = 0.75  # of the matrix product's rate
OUTSIDE_MS = 25.0  # 1024 x 1024, 16 boxes, one core
MEMORY_MB = {"paper": 3000.0, "tiny": 400.0}  # of the paper's models: in int8
START_S = {"paper": 10.0, "tiny": 3.0}


@dataclass(frozen=True)
class Goal:
    """One goal of one row: what was measured, and whether that is enough."""

    row: str
    what: str
    limit: str
    figure: str
    met: bool
    note: str = ""


def goals(lines: Sequence[Line], facts: Mapping[str, object]) -> list[Goal]:
    """Every goal that the engine's rows have figures for; `facts` are the run's.

    On one thread CPU time decides, which other work on the machine changes less than the wall
    clock; on several it says nothing about how long one waits, and the wall clock does.
    """
    by_row: dict[str, dict[tuple[str, str], Line]] = {}
    for line in lines:
        if line.get("engine") and "stage" in line:
            by_row.setdefault(line["row"], {})[line["part"], line["stage"]] = line
    return [goal for row, stages in by_row.items() for goal in _of_row(row, stages, facts)]


def _of_row(
    row: str, stages: Mapping[tuple[str, str], Line], facts: Mapping[str, object]
) -> Iterator[Goal]:
    whole, good = stages[DEFECTIVE, WHOLE], stages[GOOD, WHOLE]
    fp32, note = whole["precision"] == "fp32", str(whole["note"])
    clock = "cpu" if facts["threads"] == 1 else "wall"

    def ratio(what: str, line: Line, limit: float, name: str = "times_eager") -> Iterator[Goal]:
        if f"{name}_{clock}" in line:
            keep = line.get(f"{name.replace('eager', 'keep_pages')}_{clock}")
            figure = _both(line, name, ".2f")
            figure += "" if keep is None else f"; {keep:.2f} times keep-pages"
            met = line[f"{name}_{clock}"] >= limit
            yield Goal(row, what, f">= {limit:g} times eager", figure, met, note)

    if fp32:
        yield from ratio("graphs of a defective part", stages[DEFECTIVE, ALL_GRAPHS], FASTER_FP32)
    else:
        yield from ratio("defective part", whole, FASTER_DEFECTIVE)
        yield from ratio("good part", good, FASTER_GOOD)
        what = "good part, where eager encodes every part with SAM"
        yield from ratio(what, good, FASTER_GOOD, "times_eager_always_sam")
    if "mask_iou" in whole:
        verdict = "the same verdict" if whole["same_verdict"] else "ANOTHER VERDICT"
        met = whole["mask_iou"] >= MASK_IOU and whole["same_verdict"]
        what, limit = f"agreement, {whole['pictures']} pictures", f"IoU >= {MASK_IOU:g}, verdict"
        yield Goal(row, what, limit, f"IoU {whole['mask_iou']:.4f}, {verdict}", met, note)
    for stage in ("clip_umci", "sam_encoder") if fp32 else ():
        line = stages[DEFECTIVE, stage]
        if f"share_{clock}" in line:
            met = line[f"share_{clock}"] >= SHARE
            limit = f">= {SHARE:.0%} of the matrix product"
            yield Goal(row, stage, limit, _both(line, "share", ".0%"), met)
    if (facts["image"], facts["boxes"]) == ("1024x1024", 16):
        line = stages[DEFECTIVE, OUTSIDE]
        met = line[f"{clock}_ms"] < OUTSIDE_MS
        figure = f"{line['wall_ms']:.1f} wall, {line['cpu_ms']:.1f} CPU"
        yield Goal(row, OUTSIDE, f"< {OUTSIDE_MS:g} ms", figure, met)
    preset = str(facts["preset"])
    if preset == "tiny" or (preset == "paper" and "int8" in whole["precision"]):
        peak, start = whole["peak_rss_mb"], whole["cold_start_s"]
        most, longest = MEMORY_MB[preset], START_S[preset]
        yield Goal(row, "peak memory", f"< {most:g} MB", f"{peak} MB", peak < most)
        what = "start to first verdict, wall clock"
        yield Goal(row, what, f"< {longest:g} s", f"{start} s", start < longest)


def _both(line: Line, name: str, form: str) -> str:
    return f"{line[f'{name}_wall']:{form}} wall, {line[f'{name}_cpu']:{form}} CPU"


def note(precision: str, random_weights: bool) -> str:
    """What must be said beside a figure in this precision."""
    return FLATTERED if random_weights and "int8" in precision else ""
