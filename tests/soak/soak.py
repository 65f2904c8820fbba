"""Thousands of parts, killed at random moments and resumed: each is judged exactly once.

    make soak                                     20,000 parts, 50 kills, each way: half an hour
    python tests/soak/soak.py command --parts 500 --kills 5

Two ways: `many`, a program that takes parts from a camera through `ClipSAM.inspect_many` and notes
every verdict; `command`, `clipsam inspect --resume` on a folder. SIGKILL comes at moments that the
seed decides, during the first half of the parts; the second half runs in one process. Then: every
part has one verdict, the one that was drawn into it, nothing else lies about, and the memory of
the last process stayed flat. Interrupted itself, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `support`

import cv2
import numpy as np
from numpy.typing import NDArray
from support.memory_plot import write_plot
from support.toy_bundle import bright_square, build_toy_bundle

from clipsam.runtime import ClipSAM

WAYS = ("many", "command")
GROWTH_MB = 16  # that the last process may add from its first to its last quarter


def draw_part(number: int) -> tuple[NDArray[np.uint8], bool]:
    """Part `number`, always the same one, and whether it has a defect."""
    drawn = random.Random(number)
    height, width = drawn.randrange(48, 128), drawn.randrange(48, 128)
    defective = drawn.random() < 0.3
    box = (drawn.randrange(20), drawn.randrange(20), 20, 22) if defective else (0, 0, 0, 0)
    image = bright_square(height, width, box)
    noise = np.random.default_rng(number).integers(0, 12, image.shape, np.uint8)
    return np.minimum(image, 243) + noise, defective


def name(number: int) -> str:
    """Under what the command finds the part."""
    return f"{number // 200:03}/part {number:06}.png"


def camera(folder: Path, parts: int) -> None:
    """The program of `many`: what its log lacks is inspected and noted."""
    log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    done = {line.split()[0] for line in (folder / "log").read_text().splitlines()}
    wanted = [number for number in range(parts) if str(number) not in done]
    with ClipSAM.open(folder / "bundle", threads=1) as model:
        line = model.inspect_many(draw_part(number)[0] for number in wanted)
        for number, part in zip(wanted, line, strict=True):
            os.write(log, f"{number} {part.result().verdict}\n".encode())


@dataclass
class State:
    """How far a soak got, kept in a file."""

    kills: int = 0
    runs: int = 0
    ended: bool = False  # a process found nothing left to do
    samples: list[tuple[int, int, float]] = field(default_factory=list)  # run, parts, MB


class Soak:
    def __init__(self, way: str, options: argparse.Namespace) -> None:
        self.way = way
        self.parts: int = options.parts
        self.folder: Path = options.folder / way
        for place in ("home", "tmp"):
            (self.folder / place).mkdir(parents=True, exist_ok=True)
        if not (self.folder / "bundle/manifest.json").exists():
            build_toy_bundle(self.folder / "bundle")
        draw = random.Random(f"{way} {options.seed}")
        # After so many more verdicts and so many seconds; one in five while it still starts, the
        # first as it is started, so that no machine is too fast for it.
        most = options.parts / options.kills if options.kills else 0
        self.moments = [
            (0 if draw.random() < 0.2 else draw.uniform(1, most), draw.uniform(0, 1))
            for _ in range(options.kills)
        ]
        self.moments[:1] = [(0, 0)] * len(self.moments[:1])
        self.kept = self.folder / "state.json"
        self.state = State(**json.loads(self.kept.read_text())) if self.kept.exists() else State()
        self._read: tuple[int, int] = 0, 0  # bytes of the log and lines in them
        self.out: Path = self.folder / "out"
        self.log: Path = self.folder / "log" if way == "many" else self.out / "results.jsonl"

    def command(self) -> list[str]:
        if self.way == "many":
            command = [sys.executable, __file__, "camera", "--parts", str(self.parts)]
            return [*command, "--folder", str(self.folder)]
        paths = [str(self.folder / "bundle"), str(self.folder / "pictures")]
        command = [sys.executable, "-m", "clipsam.runtime.cli", "inspect", *paths]
        return [*command, "--output", str(self.out), "--resume", "--threads", "1"]

    def prepare(self) -> None:
        for number in range(self.parts if self.way == "command" else 0):
            path = self.folder / "pictures" / name(number)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(self.folder / "new.png"), draw_part(number)[0])
                (self.folder / "new.png").replace(path)

    def run(self) -> None:
        """Start, kill and resume until all parts are done."""
        self.prepare()
        env = {**os.environ, "HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1"}
        env["TMPDIR"] = str(self.folder / "tmp")
        while not self.state.ended:  # which a fast machine may do before the last kill
            with (
                (self.folder / "stderr").open("wb") as errors,
                subprocess.Popen(
                    self.command(), env=env, stdout=subprocess.DEVNULL, stderr=errors
                ) as child,
            ):
                try:
                    self.watch(child)
                finally:
                    child.kill()
            self.state.runs += 1
            self.state.kills += child.returncode == -signal.SIGKILL
            self.state.ended = child.returncode == 0
            self.kept.write_text(json.dumps(vars(self.state)))
            if child.returncode not in (0, -signal.SIGKILL):
                raise SystemExit(f"{self.way} ended: {(self.folder / 'stderr').read_text()}")

    def watch(self, child: subprocess.Popen[bytes]) -> None:
        """Sample its memory, and kill it when its moment has come."""
        before, sampled, kill_at = self.judged(), 0.0, float("inf")
        started = time.monotonic()
        while child.poll() is None:
            now, done = time.monotonic(), self.judged()
            if now - sampled > 0.5:
                self.state.samples.append((self.state.runs, done, resident_mb(child.pid)))
                sampled = now
            if kill_at == float("inf") and self.state.kills < len(self.moments):
                verdicts, seconds = self.moments[self.state.kills]
                if done - before >= verdicts:  # in the midst of a part, or of starting
                    kill_at = now + seconds * (1 if verdicts == 0 else 0.1)
            if now >= kill_at:
                child.kill()
                return
            time.sleep(0.01)
        self.state.samples = [s for s in self.state.samples if s[2]]
        print(
            f"{self.way}: process {self.state.runs + 1} ended by itself after "
            f"{time.monotonic() - started:.0f} s, {self.judged() - before} parts",
            flush=True,
        )

    def judged(self) -> int:
        """Verdicts so far."""
        if not self.log.exists():
            return 0
        size = self.log.stat().st_size
        at, lines = self._read
        if size < at:  # a torn line was cut off
            at, lines = 0, 0
        with self.log.open("rb") as file:
            file.seek(at)
            data = file.read(size - at)
        lines += data.count(b"\n")
        self._read = at + len(data), lines
        return lines

    def verdicts(self) -> Iterator[tuple[str, str]]:
        """Part and verdict of every line."""
        for line in self.log.read_text().splitlines():
            if self.way == "many":
                number, verdict = line.split()
                yield name(int(number)), verdict
            else:
                row = json.loads(line)
                yield row["image"], row.get("verdict", row.get("error"))

    def problems(self) -> list[str]:
        """What went wrong; empty when all is as promised."""
        found = []
        truth = {name(n): "anomalous" if draw_part(n)[1] else "good" for n in range(self.parts)}
        verdicts = list(self.verdicts())
        times = Counter(part for part, _ in verdicts)
        for what, parts in (
            ("not judged", truth.keys() - times.keys()),
            ("judged more than once", {part for part, count in times.items() if count > 1}),
            ("judged wrongly", {part for part, verdict in verdicts if truth[part] != verdict}),
        ):
            if parts:
                found.append(f"{len(parts)} {what}, e.g. {sorted(parts)[0]}")
        if self.way == "command":
            found += self.stray(truth)
        for place in ("home", "tmp"):
            if left := list((self.folder / place).rglob("*")):
                found.append(f"left in {place}: {left[:3]}")
        if (growth := self.growth()) > GROWTH_MB:
            found.append(f"memory grew by {growth:.0f} MB")
        return found

    def stray(self, truth: dict[str, str]) -> list[str]:
        """Files that are missing, too many, or not what their row says."""
        ends = (".overlay.png", ".mask.png", ".score.tiff")
        wanted = {Path(part).with_suffix("").as_posix() + end for part in truth for end in ends}
        there = {p.relative_to(self.out).as_posix() for p in self.out.rglob("*") if p.is_file()}
        found = [f"missing {file}" for file in sorted(wanted - there)[:3]]
        found += [f"stray {file}" for file in sorted(there - wanted - {"results.jsonl"})[:3]]
        for part, verdict in truth.items():
            mask = cv2.imread(str((self.out / part).with_suffix(".mask.png")), cv2.IMREAD_UNCHANGED)
            if mask is None or bool(mask.any()) != (verdict == "anomalous"):
                found.append(f"the mask of {part} is not of its verdict")
        return found

    def last(self) -> list[float]:
        """Memory of the last process once it worked."""
        samples = self.state.samples  # none where every process was done before it was looked at
        return [mb for number, _, mb in samples if number == samples[-1][0]][4:]

    def growth(self) -> float:
        mb = self.last()
        quarter = len(mb) // 4
        return statistics.median(mb[-quarter:]) - statistics.median(mb[:quarter]) if quarter else 0

    def report(self) -> str:
        mb = self.last()
        return (
            f"{self.way}: {self.parts} parts, {self.state.kills} kills, {self.state.runs} processes"
            f"; the last one's memory {min(mb, default=0):.0f} to {max(mb, default=0):.0f} MB, "
            f"{self.growth():+.1f} MB from its first to its last quarter"
        )


def resident_mb(pid: int) -> float:
    """Resident memory of a process; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", nargs="?", choices=[*WAYS, "camera"], help="default: both")
    parser.add_argument("--parts", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    parser.add_argument("--plot", type=Path, help="write the memory over the parts as SVG")
    options = parser.parse_args()
    if options.way == "camera":
        camera(options.folder, options.parts)
        return 0
    wrong, panels = 0, list[tuple[str, Any]]()
    for way in (options.way,) if options.way else WAYS:
        soak = Soak(way, options)
        soak.run()
        problems = soak.problems()
        print(f"{soak.report()}: {'; '.join(problems) or 'every part judged exactly once'}")
        panels.append((soak.report(), soak.state.samples))
        wrong += bool(problems)
    if options.plot:
        write_plot(options.plot, panels)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
