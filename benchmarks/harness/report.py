"""What the benchmarks write: CSV files and Markdown tables."""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]  # of a CSV file, by column


def write_csv(path: Path, lines: Sequence[Line], facts: Mapping[str, Any]) -> None:
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
    print(f"\n{path}: {len(full)} lines")


def show_facts(facts: Mapping[str, Any]) -> None:
    """Machine and run, a line each."""
    print("\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n", flush=True)


def table(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A Markdown table with columns as wide as they need to be; figures to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *body)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(pairs)]
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    lines.insert(1, ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], name: str, digits: int = 4) -> Line:
    """Median, least and most, under `name`."""
    return {
        name: round(statistics.median(values), digits),
        f"{name}_min": round(min(values), digits),
        f"{name}_max": round(max(values), digits),
    }
