"""What the CPU benchmarks write: CSV, and tables in Markdown."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpu_goals import Goal
from cpu_lines import ALWAYS_SAM, Line
from cpu_row import OUTSIDE, WHOLE
from latency_row import DEFECTIVE, GOOD

_NONE = "–"


def write_csv(path: Path, lines: Sequence[Line], facts: Line) -> None:
    """Every line with the facts of machine and run, whole or not at all; raises OSError."""
    full = [{**line, **facts} for line in lines]
    names = list(dict.fromkeys(name for line in full for name in line))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(full)
    temporary.replace(path)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column is words, the others are figures."""
    rows = [list(head), [" --- ", *[" ---: "] * (len(head) - 1)], *map(list, body)]
    return "\n".join(f"| {' | '.join(cell.strip() for cell in row)} |" for row in rows)


def report(lines: Sequence[Line], goals: Sequence[Goal], facts: Mapping[str, object]) -> str:
    """All of it in Markdown."""
    parts = [f"{name}: {value}" for name, value in facts.items()]
    text = "\n".join(f"- {part}" for part in parts)
    text += "\n\nMilliseconds of CPU time in parentheses after the wall clock's; medians.\n\n"
    text += table(
        ["row", "good part", "x eager", "x keep-pages", "defective part", "least .. most",
         "x eager", "x keep-pages", "CLIP share", "SAM share", "outside", "peak MB", "start s",
         "mask IoU", "note"],
        [_row(row, lines) for row in dict.fromkeys(str(line["row"]) for line in lines)],
    )  # fmt: skip
    if goals:
        text += "\n\n" + table(
            ["goal", "row", "limit", "measured", "met", "note"],
            [[g.what, g.row, g.limit, g.figure, "yes" if g.met else "no", g.note] for g in goals],
        )
    return text + "\n"


def _row(row: str, lines: Sequence[Line]) -> list[str]:
    """One row of the table."""
    own = [line for line in lines if line["row"] == row]
    stages = {(line["part"], line["stage"]): line for line in own if "stage" in line}
    if not stages:
        said = [
            f"{line['backend']}: {line['gflop_per_wall_s']:.0f} ({line['gflop_per_cpu_s']:.0f}) "
            "GFLOP/s"
            if "gflop_per_cpu_s" in line
            else str(line["status"])
            for line in own
        ]
        return [row, *[""] * 13, "; ".join(said)]
    good, whole = stages.get((GOOD, WHOLE), {}), stages.get((DEFECTIVE, WHOLE), {})
    clip, sam = (stages.get((DEFECTIVE, name), {}) for name in ("clip_umci", "sam_encoder"))
    outside, notes = stages.get((DEFECTIVE, OUTSIDE), {}), [str(whole.get("note", ""))]
    always = stages.get((ALWAYS_SAM, WHOLE))
    if always is not None:
        notes.append(f"good part if SAM always encodes: {_time(always)}")
    if whole.get("agrees") not in (None, True):
        notes.append(str(whole["agrees"]))
    return [
        row,
        _time(good),
        _times(good, "eager"),
        _times(good, "keep_pages"),
        _time(whole),
        f"{_ms(whole['wall_ms_min'])} .. {_ms(whole['wall_ms_max'])}" if whole else _NONE,
        _times(whole, "eager"),
        _times(whole, "keep_pages"),
        _share(clip),
        _share(sam),
        _time(outside),
        str(whole.get("peak_rss_mb", _NONE)),
        str(whole.get("cold_start_s", _NONE)),
        str(whole.get("mask_iou", _NONE)),
        "; ".join(filter(None, notes)),
    ]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _time(line: Line) -> str:
    return f"{_ms(line['wall_ms'])} ({_ms(line['cpu_ms'])})" if line else _NONE


def _times(line: Line, against: str) -> str:
    if f"times_{against}_wall" not in line:
        return _NONE
    wall, cpu = line[f"times_{against}_wall"], line[f"times_{against}_cpu"]
    return f"{wall:.2f} ({cpu:.2f})"


def _share(line: Line) -> str:
    if "share_wall" not in line:
        return _NONE
    return f"{line['share_wall']:.0%} ({line['share_cpu']:.0%})"
