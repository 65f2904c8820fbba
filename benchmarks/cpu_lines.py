"""What `bench_cpu.py` measures, and how samples become lines of the CSV, ratios and goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cpu_row import ALL_GRAPHS, MATRIX, OUTSIDE, WHOLE, CpuJob, Outcome, Stages
from latency_lines import flops_of_prompts
from latency_row import DEFECTIVE, GOOD

from clipsam.export.parity.inspection import overlap

EAGER, TUNED = "torch-eager", "torch-eager-keep-pages"
ALWAYS_SAM = "good part, SAM always encodes"
FLATTERED = "random weights flatter int8"
CLOCKS = ((0, "wall"), (1, "cpu"))  # of a stage's pair
Line = dict[str, Any]
# (row, part) -> of every round in which it was measured, the stages' medians of that turn
Rounds = dict[tuple[str, str], dict[int, Stages]]


@dataclass(frozen=True)
class Row:
    """One combination of library, precision and graphs."""

    name: str
    title: str
    job: CpuJob

    @property
    def is_session(self) -> bool:
        """Whether it is the engine and not PyTorch."""
        return self.job.kind == "session"

    @property
    def is_fp32(self) -> bool:
        """Whether it must agree with eager to rounding."""
        return self.job.precision == "fp32"


TORCH_ROWS = (
    (EAGER, "PyTorch eager", "torch-eager", "fp32", False),
    (TUNED, "PyTorch eager, malloc keeps pages", "torch-eager", "fp32", True),
    ("torch-sdpa-fp32", "PyTorch SDPA, malloc keeps pages", "torch-sdpa", "fp32", True),
    ("torch-sdpa-bf16", "PyTorch SDPA, malloc keeps pages", "torch-sdpa", "bf16", True),
    ("torch-compile-bf16", "PyTorch SDPA compiled", "torch-compile", "bf16", True),
)


def medians(calls: Sequence[Stages]) -> Stages:
    """The median of every stage over the calls of one turn."""
    return {
        stage: (
            statistics.median(call[stage][0] for call in calls),
            statistics.median(call[stage][1] for call in calls),
        )
        for stage in calls[0]
    }


def spread(values: Sequence[float], name: str, digits: int = 4) -> Line:
    """Median, least and most, under `name`."""
    return {
        name: round(statistics.median(values), digits),
        f"{name}_min": round(min(values), digits),
        f"{name}_max": round(max(values), digits),
    }


def always_encoded(rounds: Rounds, row: str) -> dict[int, Stages]:
    """A good part where SAM encodes every part: CLIP's pass and, of the same round, SAM's encoder.

    What a user writes who encodes first and looks afterwards. A sum of two that were measured.
    """
    good, defective = rounds.get((row, GOOD), {}), rounds.get((row, DEFECTIVE), {})
    found = {}
    for number in sorted(set(good) & set(defective)):
        (a, b), (c, d) = good[number][WHOLE], defective[number]["sam_encoder"]
        found[number] = {WHOLE: (a + c, b + d)}
    return found


def ratios(
    against: Mapping[int, Stages], of: Mapping[int, Stages], stage: str, column: int
) -> list[float]:
    """How many times faster `of` is, round by round; `column` 0 is wall clock, 1 CPU time."""
    common = sorted(set(against) & set(of))
    pairs = [
        (against[number][stage][column], of[number][stage][column])
        for number in common
        if stage in against[number] and stage in of[number]
    ]
    return [a / b for a, b in pairs if b > 0]


def stage_flops(flops: Mapping[str, float], part: str, stage: str, boxes: int) -> float | None:
    """FLOPs of a stage of an inspection, None where they are not counted."""
    decoder = flops_of_prompts(flops, boxes)
    if decoder is None or stage == OUTSIDE or part == ALWAYS_SAM:
        return None
    parts = {"clip_umci": flops["clip_umci"]}
    if part == DEFECTIVE:
        parts |= {"sam_encoder": flops["sam_encoder"], "sam_decoder": decoder}
    return sum(parts.values()) if stage in (WHOLE, ALL_GRAPHS) else parts.get(stage)


def peak_rates(rounds: Rounds, flop: Mapping[str, float]) -> dict[int, tuple[float, float]]:
    """Round -> operations a second of the fastest product, by wall clock and by CPU time."""
    found = {}
    for number, products in rounds.get((MATRIX, GOOD), {}).items():
        rates = [(flop[name] / wall, flop[name] / cpu) for name, (wall, cpu) in products.items()]
        walls, cpus = zip(*rates, strict=True)
        found[number] = max(walls) * 1e3, max(cpus) * 1e3
    return found


def lines_of_products(rounds: Rounds, flop: Mapping[str, float]) -> list[Line]:
    """A line for every product, the best of each round in the median over the rounds."""
    lines: list[Line] = []
    for name, work in flop.items():
        line: Line = {"row": MATRIX, "backend": name, "precision": "fp32", "status": "measured"}
        times = [stages[name] for stages in rounds[MATRIX, GOOD].values()]
        for column, clock in CLOCKS:
            line |= spread([work / pair[column] / 1e6 for pair in times], f"gflop_per_{clock}_s", 1)
        lines.append({**line, "rounds": len(times)})
    return lines


def lines_of_row(
    row: Row,
    rounds: Rounds,
    flops: Mapping[str, float],
    peaks: Mapping[int, tuple[float, float]],
    boxes: int,
) -> Iterator[Line]:
    """The lines of one row, one for every part and stage."""
    parts = {part: rounds.get((row.name, part), {}) for part in (GOOD, DEFECTIVE)}
    if row.job.kind == "torch-eager":
        parts[ALWAYS_SAM] = always_encoded(rounds, row.name)
    for part, found in parts.items():
        for stage in next(iter(found.values()), {}):
            line: Line = {"part": part, "stage": stage, "rounds": len(found)}
            for column, clock in CLOCKS:
                values = [stages[stage][column] for stages in found.values()]
                line |= spread(values, f"{clock}_ms")
            if part != ALWAYS_SAM:
                line |= _times_faster(rounds, part, stage, found)
            work = stage_flops(flops, part, stage, boxes)
            yield line if work is None else {**line, **_shares(work, stage, found, peaks)}


def _times_faster(rounds: Rounds, part: str, stage: str, found: Mapping[int, Stages]) -> Line:
    """Ratios to both eager rows."""
    line: Line = {}
    for name, eager in (("times_eager", EAGER), ("times_keep_pages", TUNED)):
        against = {name: rounds.get((eager, part), {})}
        if (part, stage) == (GOOD, WHOLE):
            against[f"{name}_always_sam"] = always_encoded(rounds, eager)
        for column, clock in CLOCKS:
            for column_name, slower in against.items():
                if values := ratios(slower, found, stage, column):
                    line |= spread(values, f"{column_name}_{clock}", 3)
    return line


def _shares(
    work: float,
    stage: str,
    found: Mapping[int, Stages],
    peaks: Mapping[int, tuple[float, float]],
) -> Line:
    """What share of the matrix product's rate a stage of `work` operations reaches."""
    line: Line = {"gflop": round(work / 1e9, 3)}
    for column, clock in CLOCKS:
        times = {number: stages[stage][column] / 1e3 for number, stages in found.items()}
        rates = [work / t / peaks[n][column] for n, t in times.items() if n in peaks and t > 0]
        if rates:
            line |= spread(rates, f"share_{clock}")
    return line


@dataclass(frozen=True)
class Agreement:
    """How far one row's outcome of one picture is from eager's."""

    mask_iou_mean: float
    mask_iou_min: float
    mask_iou_build: float  # the mean as builds take it, without the edges of small masks
    flipped: float  # share of the image's pixels where any mask differs
    score: float  # largest differences
    final_map: float
    rough_map: float
    same_verdict: bool


def agreement(wanted: Outcome, found: Outcome) -> Agreement:
    """Compare two outcomes of one picture with the same planted map."""
    plain, forgiving = [], []
    flipped = np.zeros(wanted.final.shape, np.bool_)
    for ours, theirs in zip(found.masks(), wanted.masks(), strict=True):
        plain.append(overlap(ours, theirs, exact=True))
        forgiving.append(overlap(ours, theirs))
        flipped |= ours != theirs
    return Agreement(
        float(np.mean(plain)),
        float(np.min(plain)),
        float(np.mean(forgiving)),
        float(flipped.mean()),
        float(np.abs(wanted.scores - found.scores).max()),
        float(np.abs(wanted.final - found.final).max()),
        float(np.abs(wanted.rough - found.rough).max()),
        wanted.verdict == found.verdict,
    )


def agreement_line(found: Sequence[Agreement]) -> Line:
    """The worst of all pictures, and the mean overlap."""
    return {
        "pictures": len(found),
        "mask_iou": round(statistics.mean(a.mask_iou_mean for a in found), 5),
        "mask_iou_min": round(min(a.mask_iou_min for a in found), 5),
        "mask_iou_build": round(min(a.mask_iou_build for a in found), 5),
        "flipped": round(max(a.flipped for a in found), 7),
        "score_difference": round(max(a.score for a in found), 7),
        "final_map_difference": round(max(a.final_map for a in found), 7),
        "rough_map_difference": round(max(a.rough_map for a in found), 7),
        "same_verdict": all(a.same_verdict for a in found),
    }
