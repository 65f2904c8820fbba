"""How the reports of `bench_latency.py`'s rows become lines of its CSV, ratios and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness import job
from harness.inspection import OUTSIDE, WHOLE
from harness.planted import DEFECTIVE, GOOD
from harness.report import Line, spread, table
from harness.rows import Row

GRAPHS = ("clip_umci", "sam_encoder", "sam_decoder")
Reports = list[dict[str, Any]]  # of a row, round by round


def walls_of(calls: Sequence[Mapping[str, Sequence[float]]], stage: str) -> list[float]:
    """Milliseconds of a stage, by the wall clock."""
    return [call[stage][0] for call in calls]


def lines_of(row: Row, reports: Reports, against: Mapping[str, Reports]) -> list[Line]:
    """The lines of the CSV for one row: one for every part and stage, or why there are none.

    `against` are the reports of the rows that it is compared with.
    """
    head: Line = {"row": row.name, "device": row.device, "precision": row.precision}
    head["status"] = job.status(reports[-1]) if reports else "not run: interrupted"
    reports = [report for report in reports if "calls" in report]
    if not reports:
        return [head]
    of_row: Line = {
        **spread([report["cold_start_s"] for report in reports], "cold_start_s", 3),
        "first_defective_s": round(reports[0]["first_defective_s"], 3),
        "peak_rss_mb": round(max(report["peak_rss_mb"] for report in reports)),
        **reports[0].get("gpu", {}),
        **reports[0].get("agreement", {}),
    }
    lines = []
    for part in reports[0]["calls"]:
        for stage in reports[0]["calls"][part][0]:
            calls = [call for report in reports for call in report["calls"][part]]
            line: Line = {**head, "part": part, "stage": stage, "n": len(calls)}
            percentiles = np.percentile(walls_of(calls, stage), (50, 90, 99))
            for name, value in zip(("p50_ms", "p90_ms", "p99_ms"), percentiles, strict=True):
                line[name] = round(float(value), 4)
            line["cpu_ms"] = round(statistics.median(call[stage][1] for call in calls), 4)
            medians = [statistics.median(walls_of(r["calls"][part], stage)) for r in reports]
            line |= spread(medians, "round_ms")
            for name, others in against.items():
                line |= ratios(name, others, reports, part, stage)
            lines.append({**line, **of_row})
    return lines


def ratios(name: str, others: Reports, ours: Reports, part: str, stage: str) -> Line:
    """How many times faster we are, round by round: `name` by the wall clock, `name`_cpu."""
    found: Line = {}
    for column, suffix in ((0, ""), (1, "_cpu")):
        values = []
        for other, our in zip(others, ours, strict=False):
            if stage in other.get("calls", {}).get(part, [{}])[0]:
                both = [
                    statistics.median(call[stage][column] for call in report["calls"][part])
                    for report in (other, our)
                ]
                values += [both[0] / both[1]] if both[1] > 0 else []
        if values:
            found |= spread(values, f"{name}{suffix}", 3)
    return found


def tables(lines: Sequence[Line]) -> str:
    """All rows in Markdown, wall clock in milliseconds."""
    body, other = [], []
    for row in dict.fromkeys(line["row"] for line in lines):
        own = [line for line in lines if line["row"] == row]
        by = {(line["part"], line["stage"]): line for line in own if "stage" in line}
        if not by:
            other += [f"- {row}: {line['status']}" for line in own]
            continue
        good, bad = by[GOOD, WHOLE], by[DEFECTIVE, WHOLE]
        note = bad.get("agrees", True)
        body.append(
            [row, *(f"{x['p50_ms']:.1f} ({x['cpu_ms']:.1f})" for x in (good, bad)),
             f"{bad['p99_ms']:.1f}",
             *(x.get("times_eager", "") for x in (good, bad)), bad.get("times_keep_pages", ""),
             *(f"{by[DEFECTIVE, s]['p50_ms']:.1f}" for s in (*GRAPHS, OUTSIDE)),
             bad["cold_start_s"], bad["peak_rss_mb"], bad.get("mask_iou", ""),
             note if note is not True else bad.get("note", "")]
        )  # fmt: skip
    head = ["ms (of CPU time)", "good part", "defective part", "p99", "good x eager",
            "defective x eager", "x keep-pages", "CLIP", "SAM encoder", "decoder", "outside",
            "start s", "peak MB", "mask IoU", "note"]  # fmt: skip
    return "\n\n".join(filter(None, ("\n".join(other), table(head, body) if body else "")))
