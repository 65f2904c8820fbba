"""Time of everything between the engines, against the same work done plainly.

    python benchmarks/bench_host.py                    # every sweep: tables, and bench_host.csv
    python benchmarks/bench_host.py --sweep size       # 0.25 to 50 megapixels; or boxes, components
    python benchmarks/bench_host.py --sweep share      # when whole masks are quicker than strips

Inputs are made up (`harness/host_scenes.py`): no engine runs. "plain" is
`tests/support/plain_host.py`, "fast" is what `clipsam.runtime` does; they take turns on the same
arrays, and the run fails unless every result is the same to the last bit. Times are milliseconds:
the median of the wall clock with its tenth and ninetieth percentile, and the median of the CPU
time, which other work on the machine changes less. The first round is not counted. One thread,
unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # BLAS reads these when NumPy is imported
    _asked = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1"
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[_name] = _asked
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cv2
import numpy as np
from harness.clock import Both, Clock, total
from harness.host_paths import PATHS, STAGES, Outcome
from harness.host_scenes import LOW_SIZE, SAM_SIZE, make_scene
from harness.machine import machine
from harness.report import Line, show_facts, write_csv

from clipsam.runtime.ops import mask_upscale
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.mask_upscale import upscale_mask

# (height, width, boxes, components) of every case.
SWEEPS = {
    "size": [
        (512, 512, 16, 16),
        (700, 700, 16, 16),
        (1024, 1024, 16, 16),
        (1536, 2048, 16, 16),
        (3000, 4000, 16, 16),
        (4000, 6000, 16, 16),
        (6123, 8165, 16, 16),
    ],
    "boxes": [(1024, 1024, n, n) for n in (0, 1, 2, 4, 8, 16)],
    "components": [(1024, 1024, min(n, 16), n) for n in (1, 16, 100, 500, 1000, 2000)],
}
TOTAL = "total"
Times = dict[str, list[Both]]  # stage -> of every round


def measure(case: tuple[int, int, int, int], rounds: int) -> tuple[dict[str, Times], bool]:
    """Times of both paths on one case, and whether their results were the same in every round."""
    scene = make_scene(*case)
    times: dict[str, Times] = {name: {} for name in PATHS}
    equal = True
    for number in range(rounds + 1):
        outcomes: list[Outcome] = []
        for name, path in PATHS.items():
            clock = Clock()
            outcomes.append(path(scene, clock))
            for stage in STAGES if number else ():
                times[name].setdefault(stage, []).append(clock.stages.get(stage, (0.0, 0.0)))
            if number:
                times[name].setdefault(TOTAL, []).append(total(clock.stages))
        equal &= outcomes[0].same(outcomes[1])
    return times, equal


def summary(both: Sequence[Both]) -> dict[str, float]:
    """Median, spread and CPU median of a stage's rounds."""
    walls, cpus = np.array(both).T
    low, median, high = np.percentile(walls, (10, 50, 90))
    return {
        "wall_ms": round(float(median), 4),
        "wall_p10_ms": round(float(low), 4),
        "wall_p90_ms": round(float(high), 4),
        "cpu_ms": round(float(np.median(cpus)), 4),
    }


def run_case(sweep: str, case: tuple[int, int, int, int], rounds: int) -> tuple[list[Line], bool]:
    """Measure one case and print its table."""
    height, width, boxes, components = case
    times, equal = measure(case, rounds)
    print(
        f"\n{width}x{height} ({height * width / 1e6:.2f} megapixels), {boxes} boxes, "
        f"{components} components, {rounds} rounds"
    )
    print(f"{'':12}{'plain ms':>10}  {'p10 .. p90':20}{'fast ms':>10}  {'p10 .. p90':20}", end="")
    print(f"{'times':>7}{'plain CPU':>11}{'fast CPU':>10}")
    rows: list[Line] = []
    for stage in (*STAGES, TOTAL):
        figures = {name: summary(times[name][stage]) for name in PATHS}
        line = f"{stage:12}"
        for figure in figures.values():
            spread = f"{figure['wall_p10_ms']:.2f} .. {figure['wall_p90_ms']:.2f}"
            line += f"{figure['wall_ms']:10.2f}  {spread:20}"
        gain = figures["plain"]["wall_ms"] / max(figures["fast"]["wall_ms"], 1e-6)
        cpu = [figure["cpu_ms"] for figure in figures.values()]
        print(f"{line}{gain:7.1f}{cpu[0]:11.2f}{cpu[1]:10.2f}")
        for name, figure in figures.items():
            rows.append(
                {
                    "sweep": sweep,
                    "height": height,
                    "width": width,
                    "boxes": boxes,
                    "components": components,
                    "stage": stage,
                    "path": name,
                    **figure,
                    "rounds": rounds,
                    "equal": equal,
                }
            )
    print("results: the same to the last bit" if equal else "results: DIFFERENT")
    return rows, equal


def run_share(rounds: int) -> tuple[list[Line], bool]:
    """One mask whose rectangle grows, resized in strips and whole, at sizes off powers of two."""
    rows, equal = [], True
    print(
        "\nOne mask: ms in strips, ms whole, by the rectangle's height and width (of the image's)"
    )
    for height, width in ((700, 700), (900, 1500), (3000, 4000)):
        geometry = Geometry(height, width, SAM_SIZE)
        valid = [round(side / SAM_SIZE * LOW_SIZE) for side in geometry.sam_shape]
        for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
            logits = np.full((LOW_SIZE, LOW_SIZE), -4.0, np.float32)
            inner = tuple(slice(0, max(1, round(side * share) - 2)) for side in valid)
            logits[inner] = 4
            medians, windows = {}, []
            before = mask_upscale.WHOLE_SHARE
            for name, limit in (("strips", 3.0), ("whole", 0.0)):
                mask_upscale.WHOLE_SHARE = limit
                spent = []
                for _ in range(rounds + 1):
                    clock = Clock()
                    with clock(name):
                        windows.append(upscale_mask(logits, geometry))
                    spent.append(clock.stages[name][1])
                medians[name] = float(np.median(spent[1:]))
            mask_upscale.WHOLE_SHARE = before
            first, last = windows[0], windows[-1]
            equal &= first is not None and last is not None
            if first is not None and last is not None:
                equal &= np.array_equal(first.logits, last.logits)
            print(
                f"{width}x{height}  {share:.1f}  {medians['strips']:8.3f} {medians['whole']:8.3f}"
            )
            rows += [
                {
                    "sweep": "share",
                    "height": height,
                    "width": width,
                    "stage": f"one mask, {share:.1f} of each side",
                    "path": name,
                    "cpu_ms": round(value, 4),
                    "rounds": rounds,
                    "equal": equal,
                }
                for name, value in medians.items()
            ]
    return rows, equal


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--sweep", choices=(*SWEEPS, "share", "all"), default="all")
    parser.add_argument(
        "--rounds", type=int, default=20, help="of every case, the first not counted"
    )
    parser.add_argument("--max_megapixels", type=float, default=1e9, help="leave larger cases out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=Path("bench_host.csv"))
    args = parser.parse_args(argv)
    cv2.setNumThreads(args.threads)
    facts = {**machine(args.threads), "ipp": int(cv2.ipp.useIPP())}
    show_facts(facts)
    rows: list[Line] = []
    equal = True
    for sweep, cases in SWEEPS.items():
        for case in cases if args.sweep in (sweep, "all") else ():
            if case[0] * case[1] <= args.max_megapixels * 1e6:
                found, same = run_case(sweep, case, args.rounds)
                rows, equal = rows + found, equal and same
    if args.sweep in ("share", "all"):
        found, same = run_share(args.rounds)
        rows, equal = rows + found, equal and same
    write_csv(args.csv, rows, facts)
    if not equal:
        print("error: the fast path's results are not the plain path's.", file=sys.stderr)
    return int(not equal)


if __name__ == "__main__":
    raise SystemExit(main())
