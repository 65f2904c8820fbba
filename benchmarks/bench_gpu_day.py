"""A day on a GPU: everything that has to run once on one, in order, bounded, into one report.

    make gpu-day
    python benchmarks/bench_gpu_day.py --wheels wheels/ --output gpu-day/
    python benchmarks/bench_gpu_day.py --minutes 9 --output gpu-day/  # and again, to the end
    python benchmarks/bench_gpu_day.py --parts 'engines *' 'latency tiny *'

Parts are processes of their own that end within 10 minutes. What is missing on the machine is a
part "not run" with its reason, and the rest goes on. Started again it goes on where it ended; what
failed or could not run is tried again, and figures of another machine, driver, library version or
commit are measured anew. Needs no network. Writes OUTPUT/report.md, OUTPUT/figures.json, and in
OUTPUT/parts what each part said. docs/gpu_day.md says what to do with it.

Exit code: 0 every part was measured or has its reason, 1 one failed or ran past its limit (or
OUTPUT cannot be used), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from gpu_day.full_size import PRESETS as FULL_SIZE
from gpu_day.parts import all_parts
from gpu_day.report import render
from gpu_day.runner import Day
from gpu_day.wheels import archives

from clipsam.export.build_engines import ATTENTIONS, PRESET_NAMES
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.errors import ClipSAMError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.core.stop import heed_stop_signals

ALWAYS = ("wheels", "machine")  # whatever else is asked for


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = command_parser(None, __doc__)
    add = parser.add_argument
    add("--output", type=Path, default=Path("build/gpu-day"), metavar="FOLDER")
    add("--wheels", type=Path, metavar="FOLDER",
        help="install what lies there into OUTPUT/site, for the parts alone")  # fmt: skip
    add("--presets", nargs="+", choices=PRESET_NAMES, default=("tiny", *FULL_SIZE))
    add("--attention", choices=ATTENTIONS, default="mask-free",
        help="how SAM's encoder writes its attention (default: mask-free)")  # fmt: skip
    add("--parts", nargs="+", metavar="PATTERN", help="only these, and what they need")
    add("--minutes", type=float, help="end by then; started again it goes on (default: no limit)")
    add("--list", action="store_true", help="name the parts and stop")
    args = parser.parse_args(arguments)
    if args.minutes is not None and not args.minutes > 0:
        parser.error("--minutes must be more than 0")
    if args.wheels is not None:
        if not args.wheels.is_dir():
            parser.error(f"--wheels: {args.wheels} is no folder")
        if not archives(args.wheels):
            parser.error(f"--wheels: there is no wheel in {args.wheels}")
    wheels = "" if args.wheels is None else str(args.wheels.resolve())
    every = all_parts(args.presets, args.attention, wheels)
    wanted = {p.name for p in every if any(fnmatch(p.name, x) for x in args.parts or ["*"])}
    if not wanted:
        parser.error(f"--parts matches none of {', '.join(part.name for part in every)}")
    for part in reversed(every):  # what a part needs comes before it
        if part.name in wanted:
            wanted.update(part.needs)
    args.chosen = [part for part in every if part.name in wanted or part.name in ALWAYS]
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = parse(arguments)
    if args.list:
        print("\n".join(part.name for part in args.chosen))
        return 0
    try:
        return _run(args)
    except (ClipSAMError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    args.output.mkdir(parents=True, exist_ok=True)
    day = Day(args.output, args.chosen, lambda text: print(text, file=sys.stderr, flush=True))
    report = args.output / "report.md"

    def write() -> None:
        write_bytes(report, render(day.parts, day.results).encode())
        figures = {part.name: day.results.get(part.name) for part in day.parts}
        write_bytes(args.output / "figures.json", (json.dumps(figures, indent=1) + "\n").encode())

    try:
        good = day.run(args.minutes, write)
    except KeyboardInterrupt:
        write()
        print(f"interrupted: {report} says what there is, start again to go on.", file=sys.stderr)
        return 130
    write()
    print(report.read_text())
    print(f"{report} and figures.json; every part's own words are in {args.output / 'parts'}.")
    return 0 if good else 1


if __name__ == "__main__":
    heed_stop_signals()
    sys.exit(main())
