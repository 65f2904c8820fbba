"""`clipsam batch` on many small pictures, beside one process, and with a node that dies.

python benchmarks/bench_batch.py bundles/tiny --pictures 20000

Draws the pictures once into `--folder`, then:

1. one process: `inspect_many` with one thread over the first `--alone` of them, before and after;
2. `clipsam batch` with `--workers` workers of one thread over all of them. Its start is the time to
   the first shard; its rate is that of the shards after it, in both halves, so that a slower second
   half would show; memory is the command's own peak, and that of a tenth of the pictures beside it;
3. the same over `--dying` pictures on a Ray cluster of three nodes, whole, and with a node killed
   when a third is done.

The million is the time to the first shard, and the rate of the second half.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow.parquet
from harness.ray_nodes import Nodes, ray_nodes

from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.results.jobs import find_jobs

_DEFECTIVE = 20  # every so manieth picture is of a defective part
_MILLION = 1_000_000


class Ran(NamedTuple):
    """What a run of `clipsam batch` took, in seconds."""

    whole: float
    done: list[float]  # when each shard's results were there, since the start
    memory: float  # peak of the command itself, MB


def main() -> None:
    """Measure and print."""
    parser = command_parser(None, __doc__)
    add = parser.add_argument
    add("bundle", type=Path)
    add("--images", type=Path, default=Path("examples/images"), help="what they are drawn from")
    add("--folder", type=Path, default=Path("build/batch"), help="for pictures and results")
    add("--pictures", type=int, default=20_000)
    add("--side", type=int, default=256, help="of a picture, pixels")
    add("--workers", type=int, default=os.cpu_count())
    add("--shard-size", type=int, default=256)
    add("--alone", type=int, default=500, help="pictures for one process")
    add("--dying", type=int, default=3000, help="pictures for the cluster that loses a node")
    args = parser.parse_args()
    size, workers = args.shard_size, ["--workers", str(args.workers)]

    few, some, all_of_them = (args.folder / name for name in ("tenth", "dying", "all"))
    for folder, count in (
        (few, args.pictures // 10),
        (some, args.dying),
        (all_of_them, args.pictures),
    ):
        draw(folder, args.images, count, args.side)

    before = alone(args.bundle, all_of_them, args.alone)
    small = run(args, few, "out-tenth", size, *workers)
    large = run(args, all_of_them, "out-all", size, *workers)
    after = alone(args.bundle, all_of_them, args.alone)
    print(f"one process: {before * 1e3:.1f} and {after * 1e3:.1f} ms a picture")
    report(large, small, args, statistics.mean((before, after)))

    with ray_nodes(3) as cluster:
        whole = run(args, some, "out-whole", size, "--address", cluster.address)
        third = args.dying // size // 3
        killed = run(
            args, some, "out-killed", size, "--address", cluster.address, kill=(cluster, third)
        )
    print(
        f"three nodes: {whole.whole:.1f} s for {args.dying} pictures; one killed after {third} "
        f"shards: {killed.whole:.1f} s, every picture once"
    )


def draw(folder: Path, images: Path, count: int, side: int) -> None:
    """So many JPEG files, no two alike: a picture of `images`, shrunk, with grain of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    there: dict[str, list[np.ndarray]] = {}
    for job in find_jobs([images]):
        small = cv2.resize(read_image(job.source), (side, side), interpolation=cv2.INTER_AREA)
        there.setdefault(job.source.parent.name, []).append(np.asarray(small))
    good, defective = there["good"], there["defective"]
    for number in range(len(list(folder.iterdir())), count):
        kind = defective if number % _DEFECTIVE == 0 else good
        rng = np.random.default_rng(number)
        picture = kind[number % len(kind)] + rng.normal(0, 2, (side, side, 3))
        path = folder / f"{number:07d}.jpg"
        cv2.imwrite(str(path), np.clip(picture, 0, 255).astype(np.uint8)[..., ::-1])


def alone(bundle: Path, folder: Path, count: int) -> float:
    """Seconds a picture of `inspect_many` with one thread, in this process."""
    files = islice(sorted(folder.iterdir()), count)
    with ClipSAM.open(bundle, threads=1) as model:
        model.warm_up()
        start, done = time.perf_counter(), 0
        for seen in model.inspect_many(files):
            seen.result()
            done += 1
        return (time.perf_counter() - start) / done


def run(
    args: argparse.Namespace,
    pictures: Path,
    name: str,
    size: int,
    *more: str,
    kill: tuple[Nodes, int] | None = None,
) -> Ran:
    """Run `clipsam batch`; with `kill`, kill a node of that cluster after so many shards."""
    output = args.folder / f"{name}-{time.time_ns()}"
    command = [sys.executable, "-m", "clipsam.runtime.cli", "batch", str(args.bundle)]
    command += [str(pictures), str(output), "--shard-size", str(size), *more]
    wall, start = time.time(), time.perf_counter()
    process = subprocess.Popen(command)
    if kill is not None:
        while len(list(output.glob("*.parquet"))) < kill[1]:
            time.sleep(0.05)
            assert process.poll() is None, "it ended before a node could be killed"
        kill[0].kill()
    _, status, used = os.wait4(process.pid, 0)
    took = time.perf_counter() - start
    assert os.waitstatus_to_exitcode(status) == 0
    table = pyarrow.parquet.read_table(output, columns=["image", "verdict"])
    count = len(list(pictures.iterdir()))
    assert len(set(table["image"].to_pylist())) == table.num_rows == count
    done = sorted(path.stat().st_mtime - wall for path in output.glob("*.parquet"))
    return Ran(took, done, used.ru_maxrss / 1024)


def report(large: Ran, small: Ran, args: argparse.Namespace, alone: float) -> None:
    """Print rates, what a picture costs beside one process, and the million."""
    half = len(large.done) // 2
    rates = [  # the last shard may have fewer pictures
        (len(part) - 1) * args.shard_size / (part[-1] - part[0])
        for part in (large.done[:half], large.done[half - 1 : -1])
    ]
    cost = args.workers / rates[1]
    print(
        f"clipsam batch, {args.pictures} pictures, {args.workers} workers: {large.whole:.1f} s, "
        f"the first shard after {large.done[0]:.1f} s; {rates[0]:.1f} pictures/s in the first "
        f"half, {rates[1]:.1f} in the second; {cost * 1e3:.1f} ms of a worker a picture, "
        f"{cost / alone:.2f} times one process's"
    )
    each = (large.memory - small.memory) / (args.pictures - args.pictures // 10)
    memory = large.memory + each * (_MILLION - args.pictures)
    seconds = large.done[0] + _MILLION / rates[1]
    print(
        f"a million: {seconds / 3600:.1f} h on {args.workers} workers; the command's own memory "
        f"{small.memory:.0f}, {large.memory:.0f}, then {memory:.0f} MB"
    )


if __name__ == "__main__":
    main()
