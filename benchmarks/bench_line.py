"""A line of parts: throughput and latency against the share of defective parts; cold start; memory.

    python benchmarks/bench_line.py                                   # bundles/tiny, CPU
    python benchmarks/bench_line.py --threads 1 --rounds 5
    python benchmarks/bench_line.py --quick                           # does it run at all?

Prints tables and writes bench_line.csv (machine, versions and date in every line). A part is a JPEG
file; what it is, is planted (`harness/line_parts.py`), so that a share of defective parts is exact.

- `loop`: `model.inspect(read_image(path))` one by one. `line N`: `inspect_many(paths, batch=N)`.
  They take turns, --rounds times with --parts parts each, and must agree on every verdict.
- `parts_s`: parts a second, median over rounds, with the slowest and fastest round. `cpu_ms`:
  processor time a part, which other processes disturb less. `against_loop`: median over rounds of
  the ratio of parts a second within a round.
- `p50_ms`, `p99_ms`: from when a part is taken to its result. The files are all there at once, so
  a part of `line` waits for those before it: what a camera slower than the line would not see.
- `cold start`: processes of their own, from their start to the verdict on a good part and on a
  defective one after it; `opened_s` is when `ClipSAM.open` was done. `cpu_…`: processor time until
  then, with that of planting.
- `peak_rss_mb`: of a process that inspects good and defective parts one by one, and one by line.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import job
from harness.clock import Clock
from harness.line_parts import plant, schedule, write_parts
from harness.machine import machine
from harness.report import Line, show_facts, spread, write_csv

from clipsam.runtime import ClipSAM, Result, read_image
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import PROVIDERS
from clipsam.runtime.commands.parser import command_parser

BATCHES = {"loop": 0, "line 1": 1, "line 4": 4}


def inspect(
    model: ClipSAM, paths: Sequence[Path], batch: int, ahead: int | None
) -> tuple[list[Result], list[float]]:
    """Results, and the milliseconds of each part from when it was taken; batch 0: one by one."""
    if batch:
        line = model.inspect_many(paths, batch=batch, ahead=ahead)
        results = [part.result() for part in line]
        return results, [result.timings["latency"] for result in results]
    results, times = [], []
    for path in paths:
        start = time.perf_counter()
        results.append(model.inspect(read_image(path)))
        times.append((time.perf_counter() - start) * 1e3)
    return results, times


def may_batch(model: ClipSAM, batch: int) -> bool:
    """Whether the model's precision allows so many images at once."""
    try:
        model.inspect_many([], batch=max(1, batch))
    except ValueError:
        return False
    return True


def measure_share(
    model: ClipSAM, paths: Sequence[Path], rounds: int, boxes: int, ahead: int | None = None
) -> dict[str, Line]:
    """All ways in turns on these parts. Raises RuntimeError where one finds other boxes than were
    planted, for which it would do other work."""
    wanted = [boxes if path.stem.startswith("defective") else 0 for path in paths]
    allowed = {name: batch for name, batch in BATCHES.items() if may_batch(model, batch)}
    rates: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, batch in allowed.items():
            clock = Clock()
            with clock(name):
                results, latencies = inspect(model, paths, batch, ahead)
            if (found := [result.prompts for result in results]) != wanted:
                raise RuntimeError(f"{name}: parts with {wanted} boxes planted were given {found}")
            wall, used = clock.stages[name]
            rates.setdefault(name, []).append(len(paths) / wall * 1e3)
            cpu.setdefault(name, []).append(used / len(paths))
            times.setdefault(name, []).extend(latencies)
    lines = {}
    for name in rates:
        ratios = [a / b for a, b in zip(rates[name], rates["loop"], strict=True)]
        p50, p99 = np.percentile(times[name], (50, 99))
        lines[name] = {
            "status": "measured",
            "parts": len(paths),
            "rounds": rounds,
            **spread(rates[name], "parts_s", 3),
            "against_loop": round(statistics.median(ratios), 3),
            "cpu_ms": round(statistics.median(cpu[name]), 2),
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
        }
    return lines


def measure_processes(args: argparse.Namespace, folder: Path) -> list[Line]:
    """Cold start and peak of memory, in processes of their own."""
    common = {
        "opened": [str(args.bundle), args.provider, args.precision],
        "boxes": args.boxes,
        "folder": str(folder),
    }
    parts = {"parts": 4 if args.quick else 20}
    lines = []
    for name, mode, task, more, repeats in (
        ("cold start", "cold", "cold_start", {}, args.cold),
        ("memory", "loop", "inspect_all", {**parts, "line": False}, 1),
        ("memory", "line", "inspect_all", {**parts, "line": True}, 1),
    ):
        asked = job.Job(f"harness.line_parts:{task}", {**common, **more}, args.threads)
        reports = [job.run(asked) for _ in range(repeats)]
        line: Line = {"row": name, "mode": mode, "rounds": repeats}
        line["status"] = status = job.status(reports[-1])
        if status != "measured":
            raise RuntimeError(f"{name}: {status}")
        for key in reports[0]:
            values = [report[key] for report in reports]
            line[key] = round(statistics.median(values), 3)
            if repeats > 1 and key.endswith("good_s"):
                line[f"{key}_max"] = round(max(values), 3)
        lines.append(line)
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options, completed."""
    parser = command_parser(None, __doc__)
    add = parser.add_argument
    add("--bundle", type=Path, default=Path("bundles/tiny"))
    add("--provider", choices=tuple(PROVIDERS), default="cpu")
    add("--precision", choices=PRECISIONS)
    add("--threads", type=int, help="CPU threads of a graph (default: all cores)")
    add("--shares", type=float, nargs="+", default=[0, 1, 5, 20, 100], help="defective, in percent")
    add("--parts", type=int, default=100, help="of a round (default: 100, so that 1 %% is one)")
    add("--rounds", type=int, default=3)
    add("--cold", type=int, default=5, help="processes started for the cold start")
    add("--image_size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    add("--boxes", type=int, default=4, choices=range(1, 17), metavar="1..16")
    add("--ahead", type=int, help="of inspect_many (default: twice the batch)")
    add("--quick", action="store_true", help="one round of 4 parts")
    add("--csv", type=Path, default=Path("bench_line.csv"))
    args = parser.parse_args(arguments)
    if args.quick:
        args.parts, args.rounds, args.cold = 4, 1, 1
    return args


def measure(args: argparse.Namespace, folder: Path) -> list[Line]:
    """Every line of the CSV, printed as it comes."""
    write_parts(folder, *args.image_size)
    lines: list[Line] = []

    def show(line: Line) -> None:
        lines.append(line)
        hidden = ("row", "mode", "share", "status", "parts", "rounds")
        rest = "  ".join(f"{key} {value}" for key, value in line.items() if key not in hidden)
        share = f"{line['share']:g} %" if "share" in line else ""
        print(f"{line['row']:11}{line['mode']:8}{share:>6}  {line['status']}  {rest}", flush=True)

    with ClipSAM.open(args.bundle, args.provider, args.threads, args.precision) as model:
        planted = plant(model, args.boxes)
        planted.warm_up()
        for share in args.shares:
            paths = schedule(folder, args.parts, share)
            found = measure_share(planted, paths, args.rounds, args.boxes, args.ahead)
            for mode, line in found.items():
                show({"row": "throughput", "mode": mode, "share": share, **line})
    for line in measure_processes(args, folder):
        show(line)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; an exception where nothing can be measured."""
    args = parse(arguments)
    facts: Line = {
        "bundle": args.bundle.name,
        "engines": args.provider,
        "image": "x".join(map(str, args.image_size)),
        "boxes": args.boxes,
        "ahead": "twice the batch" if args.ahead is None else args.ahead,
        **machine(args.threads),
    }
    show_facts(facts)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(args, Path(folder))
    write_csv(args.csv, lines, facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
