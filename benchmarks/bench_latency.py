"""Whole inspections and their graphs against PyTorch, on every device and library there is.

    python benchmarks/bench_latency.py                                # tiny, bundles/tiny
    python benchmarks/bench_latency.py --threads 1 --rows '*-cpu-*' --images photographs/
    python benchmarks/bench_latency.py --preset paper --random-weights 0 --rows 'tensorrt-*'
    python benchmarks/bench_latency.py --bundle BEFORE AFTER --rows ort-cpu-fp32
    python benchmarks/bench_latency.py --quick                        # does it run at all?

Prints a table and writes bench_latency.csv (a line for every row, part and stage, with machine,
versions and date). What is not installed or not there is a line
"not run: reason". How it is measured:

- A row (`harness/rows.py`) is a process of its own, started anew in every round; in every other
  round the rows go the other way. Ratios are taken round by round, of medians.
- What the part is, is planted into the map (`harness/planted.py`), so that every row does the same
  work: a good part has no component, a defective one --boxes boxes. Inspections begin with the
  image in memory and end with the result on the host; --warmup of each part are dropped, --seconds
  ends a part early (`n` is how many were counted).
- `p50_ms`, `p90_ms`, `p99_ms`: wall clock of all rounds (below 100 inspections p99 is close to the
  largest); `round_ms`: medians of the rounds. `cpu_ms`: CPU time of all threads with the kernel's
  part, which other work on the machine changes less.
- "torch-eager" segments only what has a component, as the engine does. "keep-pages" rows tell
  glibc's malloc to keep what is freed: the fair baseline of the two.
- `cold_start_s`: from the start of the process to the first verdict, of a good part; includes
  checking the bundle's hashes, and drawing random weights in the PyTorch rows that have them.
  `first_defective_s`: the first inspection that needs SAM.
- `peak_rss_mb`: of the process. `gpu_memory_mb`: what the GPU used at most above what it used
  before the row. Clocks: medians while the row ran, loading included. Both by nvidia-smi.
- Agreement: masks, verdict and maps of --pictures pictures (of --images, else a made-up one)
  against the first eager row's. The run fails when a row is further off than a build allows.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import job
from harness.agreement import Outcome, agreement
from harness.inspection import WHOLE
from harness.inspection_lines import Reports, lines_of, tables, walls_of
from harness.machine import GpuMonitor, machine
from harness.planted import MOST_BOXES
from harness.report import Line, show_facts, write_csv
from harness.rows import EAGER, KEEPS_PAGES, ROWS, Row, select
from harness.subjects import Plan

from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.images.reader import SUFFIXES
from clipsam.runtime.manifest import MANIFEST, Manifest

PRESETS = ("paper", "vit-b", "mobile", "tiny")


def measure(
    args: argparse.Namespace, rows: Sequence[Row], plan: Plan, found: dict[str, Reports]
) -> None:
    """Add every row's reports to `found`; a row that did not come back is not started again.

    In the first round each also says what it makes of the pictures: "agreement" in its report.
    """
    wanted: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for row in rows if number % 2 == 0 else reversed(rows):
                reports = found[row.name]
                if reports and job.status(reports[-1]) != "measured":
                    continue
                asked: dict[str, Any] = {"row": asdict(row), "plan": asdict(plan)}
                if number == 0:
                    asked |= {"pictures": args.pictures, "save": folder}
                if hint := missing_bundle(args, row):
                    report: dict[str, Any] = {"not_run": hint}
                else:
                    with nullcontext() if row.device == "cpu" else GpuMonitor() as monitor:
                        task = "harness.inspection:measure"
                        report = job.run(job.Job(task, asked, args.threads, row.keep_pages))
                    report["gpu"] = monitor.figures if monitor else {}
                reports.append(report)
                if number == 0 and job.status(report) == "measured":
                    outcomes = [
                        Outcome.load(Path(folder) / f"{i}.npz") for i in range(len(args.pictures))
                    ]
                    if wanted:
                        report["agreement"] = agreement(wanted, outcomes, row.precision)
                    elif row.kind == "eager":
                        wanted = outcomes
                print(f"round {number + 1}/{args.rounds}  {row.name}: {_said(report)}",
                      file=sys.stderr, flush=True)  # fmt: skip


def _said(report: Mapping[str, Any]) -> str:
    if "calls" not in report:
        return job.status(report)
    walls = {part: walls_of(calls, WHOLE) for part, calls in report["calls"].items()}
    return ", ".join(f"{part} {statistics.median(w):,.1f} ms" for part, w in walls.items())


def missing_bundle(args: argparse.Namespace, row: Row) -> str:
    """Why the row's bundle cannot be opened, with the command that builds it; "" where it can."""
    if row.kind != "session" or (Path(row.bundle) / MANIFEST).exists():
        return ""
    command = ["--preset", args.preset, "--output", row.bundle]
    if args.random_weights is not None:
        command += ["--random-weights", str(args.random_weights)]
    for name, path in weights_of(args).items():
        command += [f"--{name}-weights", path]
    build = f"python export/build_engines.py {shlex.join(command)}"
    return f"there is no bundle in {row.bundle}: `{build}` builds it."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options, completed."""
    parser = command_parser(None, __doc__)
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny", help="default: tiny, or the bundle's")
    add("--bundle", type=Path, nargs="+", metavar="FOLDER",
        help="default: bundles/PRESET, with random weights bundles/PRESET-random-SEED")  # fmt: skip
    add("--random-weights", type=int, metavar="SEED", help="noise for models without a file")
    for name in ("clip", "sam", "umci"):
        add(f"--{name}-weights", type=Path, metavar="FILE", help="as in build_engines.py")
    add("--rows", nargs="+", default=["*"], metavar="PATTERN",
        help=f"only these: {', '.join(row.name for row in ROWS)}")  # fmt: skip
    add("--image_size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    add("--boxes", type=int, choices=range(1, MOST_BOXES + 1), default=4, metavar="1..16",
        help="of the defective part (default: 4)")  # fmt: skip
    add("--images", type=Path, metavar="FOLDER", help="pictures that agreement is judged on")
    add("--pictures", type=int, default=2, help="how many of them (default: 2)")
    add("--rounds", type=int, default=3, help="processes of every row (default: 3)")
    add("--repeats", type=int, default=10, help="inspections of a part in each (default: 10)")
    add("--warmup", type=int, default=3, help="dropped before, at least 1 (default: 3)")
    add("--seconds", type=float, default=60, help="after which a part ends early (default: 60)")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--quick", action="store_true", help="one round of 3")
    add("--csv", type=Path, default=Path("bench_latency.csv"))
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.repeats, args.warmup = 1, 3, 1
    if min(args.rounds, args.repeats, args.pictures, args.threads or 1) < 1:
        parser.error("--rounds, --repeats, --threads and --pictures must be at least 1")
    random = "" if args.random_weights is None else f"-random-{args.random_weights}"
    args.bundle = args.bundle or [Path("bundles") / f"{args.preset}{random}"]
    if not select(args.rows, args.bundle):
        parser.error(f"--rows matches none of {', '.join(row.name for row in ROWS)}")
    count, args.pictures = args.pictures, [None]
    if args.images is not None:
        every = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not every:
            parser.error(f"--images: no picture in {args.images}")
        args.pictures = [str(path) for path in every[:: max(1, len(every) // count)][:count]]
    return args


def adopt_bundles(args: argparse.Namespace) -> None:
    """Take preset and seed from the bundles, so that PyTorch runs the same models.

    Exits with a sentence where two bundles are not of the same models.
    """
    found = []
    for folder in args.bundle:
        if not (folder / MANIFEST).exists():
            continue
        of = Manifest.from_json((folder / MANIFEST).read_text("utf-8")).provenance
        found.append((of.get("preset", args.preset), dict(of.get("checkpoints", {}))))
        if found[-1] != found[0]:
            sys.exit(f"error: {folder} is not of the same models and weights as the others.")
    if found:
        preset, checkpoints = found[0]
        args.preset = preset if preset in PRESETS else args.preset
        for digest in map(str, checkpoints.values()):
            if digest.startswith("random:"):
                args.random_weights = int(digest.split(":")[1])


def weights_of(args: argparse.Namespace) -> dict[str, str]:
    """The files of weights that were given."""
    given = {name: getattr(args, f"{name}_weights") for name in ("clip", "sam", "umci")}
    return {name: str(path) for name, path in given.items() if path is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when every row was measured and agrees or has its reason, 1 when one
    failed or differs."""
    args = parse(arguments)
    adopt_bundles(args)
    random = args.random_weights is not None
    facts: Line = {
        "preset": args.preset,
        "weights": f"random {args.random_weights}" if random else "from files",
        "image": "x".join(map(str, args.image_size)),
        "boxes": args.boxes,
        "pictures_of": "made up" if args.images is None else args.images.name,
        "command": shlex.join(
            ["bench_latency.py", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        **machine(args.threads),
    }
    show_facts(facts)
    plan = Plan(
        args.preset, weights_of(args), args.random_weights, str(args.bundle[0]),
        list(args.image_size), args.boxes, args.repeats, args.warmup, args.seconds,
    )  # fmt: skip
    rows = select(args.rows, args.bundle)
    lines: list[Line] = []
    found: dict[str, Reports] = {row.name: [] for row in rows}
    try:
        measure(args, rows, plan, found)
    except KeyboardInterrupt:
        print("interrupted: what was measured until now is written.", file=sys.stderr)
    for row in rows:
        against = {
            name: found.get(pattern.format(row.torch_device), [])
            for name, pattern in (("times_eager", EAGER), ("times_keep_pages", KEEPS_PAGES))
        }
        own = lines_of(row, found[row.name], against)
        if random and "int8" in row.precision:
            own = [{**line, "note": "random weights flatter int8"} for line in own]
        lines += own
    return write(args, lines, facts)


def write(args: argparse.Namespace, lines: Sequence[Line], facts: Line) -> int:
    """CSV and table; 1 when a row failed or differs."""
    print(tables(lines))
    write_csv(args.csv, lines, facts)
    bad = [
        f"{line['row']} {line['status'] if line['status'] != 'measured' else line['agrees']}"
        for line in lines
        if line["status"].startswith("failed") or line.get("agrees", True) is not True
    ]
    if bad:
        print(f"error: {'; '.join(dict.fromkeys(bad))}.", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
