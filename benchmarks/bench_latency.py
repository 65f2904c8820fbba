"""Latency of whole inspections and of every stage, on every backend there is.

    python benchmarks/bench_latency.py                                # tiny, bundles/tiny
    python benchmarks/bench_latency.py --preset paper --random-weights 0 --build fp16 bf16
    python benchmarks/bench_latency.py --rows 'tensorrt-*' 'ort-cuda-*' --rounds 200
    python benchmarks/bench_latency.py --quick                        # does it run at all?

Prints a table and writes bench_latency.csv (a line for every row and stage, with machine, versions
and date) and bench_latency.png. What is not installed or not there is a line "not run: reason".
A row is a process of its own (`latency_row.py`). What its columns mean:

- `p50_ms`, `p90_ms`, `p99_ms`: wall clock of `n` rounds after --warmup that were dropped
  (--seconds ends a stage early; below 100 rounds p99 is close to the largest). A stage takes arrays
  of the host and returns them there, so a GPU has finished; of PyTorch eager, SAM's embedding stays
  on the device, which is synchronised, and the decoder's time includes masks at the input's size,
  as `SamPredictor` does both.
- `good part`, `defective part`: one whole inspection, without reading the file; the defective one
  has --boxes boxes. Which it is, is planted into the map (see `latency_row.py`), so that every row
  does the same work.
- `cold_start_s`: from the start of the process to the first verdict, of a good part; includes
  checking the bundle, and drawing random weights in the PyTorch rows that have them.
  `first_defective_s`: the first inspection that needs SAM.
- `peak_rss_mb`: of the process. `gpu_memory_mb`: what the GPU used at most above what it used
  before the row. Clocks: medians while the row ran, loading included. Both by nvidia-smi.
- `gflop`: of the stage, counted on the PyTorch modules. `share`: gflop / p50 over the peak of a
  large matrix product of PyTorch's on that device, in the row's precision or fp32 if that is
  faster (`peak_tflops`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from harness.chart import write_chart  # noqa: E402
from harness.machine import GpuMonitor, machine  # noqa: E402
from latency_lines import ROWS, Line, Row, lines_of, peak_of  # noqa: E402
from latency_row import DEFECTIVE, GOOD, Job, to_json  # noqa: E402

from clipsam.runtime.backends.precision import PRECISIONS  # noqa: E402

PRESETS = ("paper", "vit-b", "tiny")


def run_job(job: Job) -> dict[str, Any]:
    """Do a job in a fresh process; {"failed": …} when it did not come back with an answer."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(to_json(replace(job, started=time.monotonic())))
        environment = dict(os.environ)
        if job.threads is not None:  # BLAS reads these when it is imported
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                environment[name] = str(job.threads)
        done = subprocess.run(
            [sys.executable, str(HERE / "latency_row.py"), str(asked), str(answer)],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
        )
        if done.returncode == 0 and answer.exists():
            found: dict[str, Any] = json.loads(answer.read_text())
            return found
        words = done.stderr.strip().splitlines()
        return {"failed": f"exit code {done.returncode}: {words[-1] if words else 'no message'}"}


def show(row: Row, lines: Sequence[Line]) -> None:
    """A row of the table on the terminal."""
    if "stage" not in lines[0]:
        print(f"{row.name:24}{lines[0]['status']}", flush=True)
        return
    by_stage = {line["stage"]: line for line in lines}
    text = f"{row.name:24}{lines[0]['cold_start_s']:8.2f}"
    for stage in (GOOD, DEFECTIVE):
        text += f"{by_stage[stage]['p50_ms']:11.2f}{by_stage[stage]['p99_ms']:11.2f}"
    for stage in ("clip_umci", "sam_encoder"):
        share = by_stage[stage].get("share")
        text += f"{by_stage[stage]['p50_ms']:11.2f}{'' if share is None else f'{share:.0%}':>6}"
    print(f"{text}{by_stage['sam_decoder 16']['p50_ms']:11.2f}", flush=True)


def measure_rows(rows: Sequence[Row], job: Job, problem: str | None) -> list[Line]:
    """Measure every row; `problem` is why there is no bundle, if there is none."""
    counted = run_job(replace(job, kind="flops", device="cpu"))
    flops = counted.get("flops", {})
    lines: list[Line] = []
    if not flops:
        lines.append({"row": "flops", "status": f"not run: {_why(counted)}"})
    peaks = {}
    for device in dict.fromkeys(row.torch_device for row in rows):
        report = run_job(replace(job, kind="peak", device=device))
        peaks[device] = report.get("peaks", {})
        named = peaks[device] or dict.fromkeys(PRECISIONS, f"not run: {_why(report)}")
        for precision, peak in named.items():
            line = {"row": "matrix peak", "device": device, "precision": precision}
            rate = (
                {"status": "measured", "peak_tflops": round(peak / 1e12, 4)}
                if isinstance(peak, float)
                else {"status": peak}
            )
            lines.append({**line, **rate})
    for line in lines:
        where = " ".join(str(line.get(name, "")) for name in ("row", "device", "precision"))
        print(f"{where:24}{line.get('peak_tflops', line['status'])}")
    print(f"\n{'milliseconds':24}{'cold s':>8}{'good p50':>11}{'p99':>11}{'defect p50':>11}"
          f"{'p99':>11}{'clip p50':>11}{'share':>6}{'encoder':>11}{'share':>6}"
          f"{'16 prompts':>11}")  # fmt: skip
    for row in rows:
        if problem and row.kind == "session":
            report: dict[str, Any] = {"not_run": problem}
        else:
            with GpuMonitor() as monitor:
                report = run_job(
                    replace(job, kind=row.kind, device=row.device, precision=row.precision)
                )
            report["gpu"] = monitor.figures if row.device != "cpu" else {}
        found = lines_of(row, report, flops, peak_of(row, peaks), job.boxes)
        show(row, found)
        lines += found
    return lines


def _why(report: Mapping[str, Any]) -> str:
    return str(report.get("not_run") or report.get("failed"))


def prepare_bundle(args: argparse.Namespace, options: Sequence[str] = ()) -> str | None:
    """Why there is no bundle to open, or None; with --build it is built first, with `options`."""
    if (args.bundle / "manifest.json").exists():
        return None
    command = ["--preset", args.preset, "--output", str(args.bundle), *options]
    if args.random_weights is not None:
        command += ["--random-weights", str(args.random_weights)]
    for name in ("clip", "sam", "umci"):
        if (path := getattr(args, f"{name}_weights")) is not None:
            command += [f"--{name}-weights", str(path)]
    script = HERE.parent / "export" / "build_engines.py"
    if args.build is not None:
        command += ["--precision", "fp32", *args.build]
        subprocess.run([sys.executable, str(script), *command], check=True)
        return None
    return (
        f"there is no bundle in {args.bundle}: `python export/build_engines.py "
        f"{shlex.join(command)}` builds it, or --build does."
    )


def write_results(args: argparse.Namespace, lines: Sequence[Line], facts: Line) -> None:
    """The CSV, and the chart where something was measured."""
    full = [{**line, **facts} for line in lines]
    with args.csv.open("w", newline="") as file:
        names = list(dict.fromkeys(name for line in full for name in line))
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(full)
    print(f"\n{args.csv}: {len(full)} lines")
    bars = [
        (f"{line['row']}, {line['stage']}", line["p50_ms"], line["p99_ms"])
        for line in lines
        if line.get("stage") in (GOOD, DEFECTIVE)
    ]
    if bars:
        where = facts["gpu"] if facts["driver"] else facts["cpu"]
        write_chart(args.chart, bars, f"{args.preset}: one inspection, {where}, {facts['date']}")
        print(args.chart)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options, completed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="tiny", help="default: tiny")
    add("--bundle", type=Path, metavar="FOLDER",
        help="default: bundles/PRESET, with random weights bundles/PRESET-random-SEED")  # fmt: skip
    add("--random-weights", type=int, metavar="SEED", help="noise for models without a file")
    for name in ("clip", "sam", "umci"):
        add(f"--{name}-weights", type=Path, metavar="FILE", help="as in build_engines.py")
    add("--build", nargs="*", choices=PRECISIONS, metavar="PRECISION",
        help="build the bundle first if it is not there, in fp32 and these")  # fmt: skip
    add("--rows", nargs="+", default=["*"], metavar="PATTERN",
        help=f"only these: {', '.join(row.name for row in ROWS)}")  # fmt: skip
    add("--image_size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    add("--boxes", type=int, choices=range(1, 17), default=4, metavar="1..16",
        help="of the defective part (default: 4)")  # fmt: skip
    add("--rounds", type=int, default=50, help="counted, of every stage (default: 50)")
    add("--warmup", type=int, default=10, help="dropped before (default: 10)")
    add("--seconds", type=float, default=60, help="after which a stage ends early (default: 60)")
    add("--matmul", type=int, default=0,
        help="side of the peak's matrices (default: 8192 on a GPU, 2048 on a CPU)")  # fmt: skip
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--quick", action="store_true", help="3 rounds after 1, and a small matrix")
    add("--csv", type=Path, default=Path("bench_latency.csv"))
    add("--chart", type=Path, help="default: the CSV's name with .png")
    args = parser.parse_args(arguments)
    if args.quick:
        args.rounds, args.warmup, args.matmul = 3, 1, 256
    args.rows = [row for row in ROWS if any(fnmatch(row.name, pattern) for pattern in args.rows)]
    if not args.rows:
        parser.error(f"--rows matches none of {', '.join(row.name for row in ROWS)}")
    random = "" if args.random_weights is None else f"-random-{args.random_weights}"
    args.bundle = args.bundle or Path("bundles") / f"{args.preset}{random}"
    args.chart = args.chart or args.csv.with_suffix(".png")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when every row was measured or has its reason, 1 when one failed."""
    args = parse(arguments)
    facts: Line = {
        "preset": args.preset,
        "weights": "from files" if args.random_weights is None else f"random {args.random_weights}",
        "image": "x".join(map(str, args.image_size)),
        "boxes": args.boxes,
        **machine(args.threads),
    }
    print("\n".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    job = Job(
        kind="",
        device="",
        precision="fp32",
        bundle=str(args.bundle),
        preset=args.preset,
        weights={
            name: str(path)
            for name in ("clip", "sam", "umci")
            if (path := getattr(args, f"{name}_weights")) is not None
        },
        random_weights=args.random_weights,
        threads=args.threads,
        image_size=tuple(args.image_size),
        boxes=args.boxes,
        rounds=args.rounds,
        warmup=args.warmup,
        max_seconds=args.seconds,
        matmul=args.matmul,
    )
    lines = measure_rows(args.rows, job, prepare_bundle(args))
    write_results(args, lines, facts)
    failed = [line["row"] for line in lines if line["status"].startswith("failed")]
    if failed:
        print(f"error: failed: {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
