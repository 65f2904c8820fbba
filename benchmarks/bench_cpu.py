"""The CPU path against PyTorch: whole inspections and graphs, memory, start, agreement.

    python benchmarks/bench_cpu.py                                   # tiny, bundles/tiny
    python benchmarks/bench_cpu.py --preset paper --random-weights 0 --build fp32 int8-dynamic \\
        --attention stock blocked --rounds 3                         # hours on one core
    python benchmarks/bench_cpu.py --bundle BUNDLE --images photographs/
    python benchmarks/bench_cpu.py --quick                           # does it run at all?

Prints its tables and writes bench_cpu.csv (a line for every row, part and stage, with machine,
versions and date), bench_cpu.md and bench_cpu.png. What is not installed or not there is a line
"not run: reason". How it is measured:

- A row is a process of its own (`cpu_row.py`); those that fit into --memory-gb together stay alive
  between their turns. In every round all rows take a turn, in the other order in every other
  round: --repeats good parts, then as many defective ones. Ratios are taken round by round.
- Wall clock, and CPU time of all threads with the kernel's part, which other work on the machine
  changes less. Medians over the rounds, each of a turn's median; least and most beside them.
- What the part is, is planted into the map (see `latency_row.py`), so that every row does the same
  work: a good part has no component, a defective one --boxes boxes.
- "torch-eager" segments only what has a component, as the engine does. What a good part costs
  where SAM encodes every part is that and, of the same round, its encoder.
- "keep-pages" rows tell glibc's malloc to keep what is freed (`cpu_row.keep_freed_pages`): without
  that, clearing pages anew takes up to a third of eager's time. It is the fair baseline of the two.
- Agreement: masks, verdict and maps of --pictures pictures (of --images, else one made-up picture)
  against eager's. The run fails when a row is further from eager than a build allows its precision.
- "matrix product": large fp32 products by every library there is, on as many threads; shares are
  taken of the fastest in the same round. FLOPs are counted on the PyTorch modules.
- `cold_start_s`: from the start of the process to the first verdict, of a good part, with the
  files in the page cache; includes checking the bundle's hashes.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from cpu_goals import goals  # noqa: E402
from cpu_lines import Line  # noqa: E402
from cpu_report import report, write_csv  # noqa: E402
from cpu_row import MATRIX, WHOLE  # noqa: E402
from cpu_run import Run  # noqa: E402
from cpu_setup import (  # noqa: E402
    add_options,
    adopt_bundles,
    base_job,
    budget,
    count_flops,
    facts_of,
    find_bundles,
    make_rows,
)
from cpu_workers import Team  # noqa: E402
from harness.chart import write_chart  # noqa: E402
from latency_row import DEFECTIVE, GOOD  # noqa: E402

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options, completed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "bench_cpu.csv")
    add = parser.add_argument
    add("--image_size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    add("--boxes", type=int, choices=range(1, 17), default=16, metavar="1..16",
        help="of the defective part (default: 16)")  # fmt: skip
    add("--images", type=Path, metavar="FOLDER", help="pictures that agreement is judged on")
    add("--pictures", type=int, default=2, help="how many of them (default: 2)")
    add("--starts", type=int, default=3, help="further starts of the engine's rows (default: 3)")
    add("--matmul", type=int, default=0, help="side of the matrices (default: 1024 and 2048)")
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.repeats, args.starts, args.matmul = 1, 1, 1, 256
    if min(args.rounds, args.repeats, args.threads, args.pictures) < 1:
        parser.error("--rounds, --repeats, --threads and --pictures must be at least 1")
    count, args.pictures = args.pictures, [None]
    if args.images is not None:
        every = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in IMAGES)
        if not every:
            parser.error(f"--images: no picture in {args.images}")
        step = max(1, len(every) // count)
        args.pictures = every[::step][:count]
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when every row was measured and agrees or has its reason, 1 when one
    failed or differs, 130 when interrupted (what was measured until then is written)."""
    args = parse(arguments)
    bundles, problems = find_bundles(args)
    adopt_bundles(args, bundles)
    asked = sys.argv[1:] if arguments is None else arguments
    facts: Line = {
        "image": "x".join(map(str, args.image_size)),
        "boxes": args.boxes,
        "pictures_of": "made up" if args.images is None else args.images.name,
        **facts_of(args, shlex.join(["bench_cpu.py", *asked])),
    }
    job = base_job(args, bundles)
    rows = make_rows(args, bundles, job)
    counted = count_flops(job)
    interrupted = False
    jobs = {MATRIX: job, **{row.name: row.job for row in rows}}
    with Team(jobs, budget(args)) as team:
        run = Run(team, rows, args)
        try:
            run.measure()
        except KeyboardInterrupt:
            interrupted = True
    lines = run.lines(counted, facts)
    lines += [{"row": "ort", "status": f"not run: {problem}"} for problem in problems]
    return write(args, lines, facts) or (130 if interrupted else 0)


def write(args: argparse.Namespace, lines: Sequence[Line], facts: Line) -> int:
    """CSV, chart and tables; 1 when a row failed or differs."""
    write_csv(args.csv, lines, facts)
    text = report(lines, goals(lines, facts), facts)
    args.csv.with_suffix(".md").write_text(text, "utf-8")
    clock = "cpu" if args.threads == 1 else "wall"  # as for the goals
    bars = [
        (f"{line['row']}, {line['part']}", line[f"{clock}_ms"], line[f"{clock}_ms_max"])
        for line in lines
        if line.get("stage") == WHOLE and line["part"] in (GOOD, DEFECTIVE)
    ]
    if bars:
        title = f"{args.preset}: one inspection, {clock} time, {facts['cpu']}, {facts['date']}"
        write_chart(args.csv.with_suffix(".png"), bars, title, "most")
    print(text)
    print(f"{args.csv}: {len(lines)} lines, and beside it .md{' and .png' if bars else ''}")
    bad = [
        f"{line['row']} {line['status'] if line['status'] != 'measured' else line['agrees']}"
        for line in lines
        if line["status"].startswith("failed") or line.get("agrees", True) is not True
    ]
    if bad:
        print(f"error: {'; '.join(dict.fromkeys(bad))}.", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    # Also in the background of a script, where Ctrl-C is ignored: what was measured is written.
    for _signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_signal, signal.default_int_handler)
    raise SystemExit(main())
