"""How the cost of an inspection on a CPU grows with the image, its boxes and regions, and threads.

    python benchmarks/bench_cpu_growth.py                            # tiny, bundles/tiny
    python benchmarks/bench_cpu_growth.py --sweep boxes regions      # or size, threads
    python benchmarks/bench_cpu_growth.py --bundle BUNDLE --rows 'ort-*' --threads 4
    python benchmarks/bench_cpu_growth.py --quick                    # does it run at all?

Rows, rounds, clocks and the planted parts are those of `bench_cpu.py`; its PyTorch rows are there
by default as "torch-eager" alone. Prints a table for every sweep and writes bench_cpu_growth.csv
(a line for every row, point and stage), .md and .png. What changes in a sweep, and what does not:

- size: 0.25 to 50 megapixels, --boxes boxes (4).
- boxes: 0 to 16, at 1024 x 1024.
- regions: 1 to 2,000 components of the rough map, at most 16 of which get a box, at 1024 x 1024.
- threads: 1 and 2, and so on up to --threads, at 1024 x 1024 with --boxes boxes. Each is a process
  of its own; the other sweeps run on one thread.

PyTorch eager's masks are one array of all boxes at image size; a point where that would not fit
into --memory-gb is "not run" and says so.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from cpu_curves import write_curves  # noqa: E402
from cpu_goals import note  # noqa: E402
from cpu_lines import CLOCKS, Line, Row, medians, spread  # noqa: E402
from cpu_report import table, write_csv  # noqa: E402
from cpu_row import WHOLE, Stages  # noqa: E402
from cpu_setup import (  # noqa: E402
    add_options,
    adopt_bundles,
    base_job,
    budget,
    facts_of,
    find_bundles,
    make_rows,
)
from cpu_workers import Team  # noqa: E402

SIZES = ((500, 500), (1024, 1024), (1500, 2000), (3000, 4000), (4000, 6000), (6123, 8165))
BOXES = (0, 1, 2, 4, 8, 16)
REGIONS = (1, 10, 100, 500, 1000, 2000)
SWEEPS = ("size", "boxes", "regions", "threads")
SIDE = 1024
# Of a mask's pixel in eager's arrays at their largest: logits and their product with the scores in
# float32, the mask in bool.
_EAGER_BYTES = 9


@dataclass(frozen=True)
class Point:
    """One point of a sweep; `x` is what changes."""

    sweep: str
    x: float
    size: tuple[int, int]
    regions: int
    threads: int = 1


def points(args: argparse.Namespace) -> Iterator[Point]:
    """All points of the sweeps that were asked for."""
    square = (SIDE, SIDE)
    if args.quick:
        square = (200, 300)
    if "size" in args.sweep:
        for size in ((100, 100), square) if args.quick else SIZES:
            if size[0] * size[1] <= args.max_megapixels * 1e6:
                yield Point("size", round(size[0] * size[1] / 1e6, 2), size, args.boxes)
    for sweep, counts in (("boxes", BOXES), ("regions", REGIONS)):
        if sweep in args.sweep:
            for count in counts[:2] if args.quick else counts:
                yield Point(sweep, count, square, count)
    if "threads" in args.sweep:
        count = 1
        while count <= args.threads:
            yield Point("threads", count, square, args.boxes, count)
            count *= 2


class Growth:
    """What every row took at every point, round by round."""

    def __init__(self, team: Team, rows: Sequence[Row], args: argparse.Namespace) -> None:
        self.team, self.rows, self.args = team, rows, args
        self.taken: dict[tuple[str, Point], list[Stages]] = {}
        self.problems: dict[tuple[str, Point], str] = {}

    def measure(self, asked: Sequence[Point]) -> None:
        """All rounds: at each point every row takes a turn; every other round the other way."""
        for number in range(self.args.rounds):
            turns = [(point, row) for point in asked for row in self.rows]
            for point, row in turns if number % 2 == 0 else reversed(turns):
                self._turn(row, point, number)

    def _turn(self, row: Row, point: Point, number: int) -> None:
        key = row.name, point
        needed = point.size[0] * point.size[1] * 3 * min(point.regions, 16) * _EAGER_BYTES / 1e6
        if row.job.kind == "torch-eager" and needed > self.team.budget_mb:
            masks = 3 * min(point.regions, 16)
            self.problems[key] = f"not run: {masks} masks would take {needed / 1e3:.0f} GB"
            return
        process = process_name(row, point.threads)
        turn = {
            "ask": "turn",
            "image_size": point.size,
            "regions": point.regions,
            "repeats": self.args.repeats,
        }
        # The first of a size is not like the others, either: buffers grow.
        first = {**turn, "repeats": 1}
        reply = None
        if key not in self.taken:
            reply = self.team.ask(process, **first)
        if key in self.taken or reply is not None:
            reply = self.team.ask(process, first, **turn)
        if reply is None:
            self.problems[key] = self.team.problems[process].status
            return
        found = medians(reply["calls"])
        self.taken.setdefault(key, []).append(found)
        print(
            f"round {number + 1}/{self.args.rounds}  {point.sweep} {point.x:g}  {process}: "
            f"{found[WHOLE][0]:,.1f} ms (CPU {found[WHOLE][1]:,.1f})",
            file=sys.stderr,
            flush=True,
        )

    def lines(self, asked: Sequence[Point], facts: Line) -> list[Line]:
        """The lines of the CSV."""
        lines: list[Line] = []
        for point in asked:
            for row in self.rows:
                head: Line = {
                    "sweep": point.sweep,
                    "x": point.x,
                    "height": point.size[0],
                    "width": point.size[1],
                    "regions": point.regions,
                    "boxes": min(point.regions, 16),
                    "row": row.name,
                    "row_threads": point.threads,
                    "precision": row.job.precision,
                    "note": note(row.job.precision, facts["weights"] != "from files"),
                }
                taken = self.taken.get((row.name, point))
                if taken is None:
                    why = self.problems.get((row.name, point), "not run: interrupted")
                    lines.append({**head, "status": why})
                    continue
                for stage in taken[0]:
                    line = {**head, "status": "measured", "stage": stage, "rounds": len(taken)}
                    for column, clock in CLOCKS:
                        line |= spread([stages[stage][column] for stages in taken], f"{clock}_ms")
                    lines.append(line)
        return lines


def process_name(row: Row, threads: int) -> str:
    """Of the process that runs a row on so many threads."""
    return f"{row.name} on {threads}"


def tables(lines: Sequence[Line], facts: Mapping[str, object]) -> str:
    """A table for every sweep: whole inspections, wall clock and CPU time."""
    text = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    text += "\n\nMilliseconds of CPU time in parentheses after the wall clock's; medians.\n"
    for sweep in dict.fromkeys(line["sweep"] for line in lines):
        own = [line for line in lines if line["sweep"] == sweep]
        rows = list(dict.fromkeys(line["row"] for line in own))
        body = []
        for x in dict.fromkeys(line["x"] for line in own):
            cells = {
                line["row"]: f"{line['wall_ms']:,.1f} ({line['cpu_ms']:,.1f})"
                if line["status"] == "measured"
                else line["status"]
                for line in own
                if line["x"] == x and line.get("stage", WHOLE) == WHOLE
            }
            body.append([f"{x:g}", *(cells[row] for row in rows)])
        text += f"\n{table([sweep, *rows], body)}\n"
    return text


def panels(lines: Sequence[Line]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Whole inspections as curves: sweep -> row -> points of CPU time, of threads wall clock."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        if line.get("stage") == WHOLE:
            clock = "wall" if line["sweep"] == "threads" else "cpu"
            title = {
                "size": "megapixels, ms of CPU time",
                "boxes": "boxes, ms of CPU time",
                "regions": "regions, ms of CPU time",
                "threads": "threads, ms of wall clock",
            }[line["sweep"]]
            curve = found.setdefault(title, {}).setdefault(line["row"], [])
            curve.append((line["x"], line[f"{clock}_ms"]))
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options, completed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "bench_cpu_growth.csv")
    add = parser.add_argument
    add("--sweep", nargs="+", choices=SWEEPS, default=SWEEPS)
    add("--boxes", type=int, choices=range(1, 17), default=4, metavar="1..16")
    add("--max_megapixels", type=float, default=1e9, help="leave larger images out")
    parser.set_defaults(rows=["torch-eager", "ort-*"], threads=2, rounds=3)
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.repeats = 1, 1
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when every point was measured or has its reason, 1 when one failed, 130
    when interrupted (what was measured until then is written)."""
    args = parse(arguments)
    bundles, missing = find_bundles(args)
    adopt_bundles(args, bundles)
    for problem in missing:
        print(f"not run: {problem}", file=sys.stderr)
    asked = list(points(args))
    words = sys.argv[1:] if arguments is None else arguments
    facts = facts_of(args, shlex.join(["bench_cpu_growth.py", *words]))
    rows = make_rows(args, bundles, replace(base_job(args, bundles), image_size=(200, 300)))
    jobs = {
        process_name(row, threads): replace(row.job, threads=threads)
        for row in rows
        for threads in dict.fromkeys(point.threads for point in asked)
    }
    interrupted = False
    with Team(jobs, budget(args)) as team:
        growth = Growth(team, rows, args)
        try:
            growth.measure(asked)
        except KeyboardInterrupt:
            interrupted = True
    lines = growth.lines(asked, facts)
    write_csv(args.csv, lines, facts)
    text = tables(lines, facts)
    args.csv.with_suffix(".md").write_text(text, "utf-8")
    if curves := panels(lines):
        write_curves(args.csv.with_suffix(".png"), curves)
    print(
        f"{text}\n{args.csv}: {len(lines)} lines, and beside it .md{' and .png' if curves else ''}"
    )
    failed = [f"{line['row']} {line['status']}" for line in lines if "failed" in line["status"]]
    if failed:
        print(f"error: {'; '.join(dict.fromkeys(failed))}.", file=sys.stderr)
    return 1 if failed else (130 if interrupted else 0)


if __name__ == "__main__":
    # Also in the background of a script, where Ctrl-C is ignored: what was measured is written.
    for _signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_signal, signal.default_int_handler)
    raise SystemExit(main())
