"""Does a station lose nothing? 20,000 parts through `clipsam watch`, with all that can go wrong.

    make soak-station                                            # 20 minutes of a core; as root
    python benchmarks/soak_station.py --parts 2000 --kills 10    # smaller

Parts are drawn on the fly and judged by the toy bundle of the tests, so that the time goes into
what is measured: the station. Four fifths are files of a folder, written as they are judged;
meanwhile the station is killed with SIGKILL at seeded random moments, every thousandth picture
kills it by itself, and its disk (a tmpfs of its own) is full twice. The last fifth are frames of a
camera that is lost three times; nothing is killed there, so that memory can be watched. Then every
part must be in the store once, with the verdict that was drawn. Exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from harness.machine import machine  # noqa: E402
from harness.station_child import FAKE, draw  # noqa: E402
from support.memory_plot import write_plot  # noqa: E402
from support.toy_bundle import build_toy_bundle  # noqa: E402

from clipsam.runtime.station.store import Store  # noqa: E402
from clipsam.runtime.station.upkeep import check  # noqa: E402

_WAITING = 200  # files that wait in the folder, at most
_FULL_SECONDS = 6.0
_DISK = "192m"


class Watch:
    """The station's process, started again whenever it died, and its memory over time."""

    def __init__(self, work: Path, store: Path, toy: Path, source: str, *more: str) -> None:
        child = ROOT / "benchmarks/harness/station_child.py"
        self._command = [sys.executable, str(child), *more, "watch", str(toy), source]
        self._command += ["--store", str(store), "--uncalibrated", "--threads", "1", "--quiet"]
        if source == FAKE:
            self._command += ["--behind", "queue"]
        self._command += ["--keep-good", "1%", "--min-free", "8MB", "--rescan", "2s"]
        self._log = (work / "watch.log").open("ab")
        self.starts = 0
        self.memory: list[tuple[float, float]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._end = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def keep_up(self) -> None:
        """Start the process if it is not running."""
        if self._process is None or self._process.poll() is not None:
            self.starts += 1
            self._process = subprocess.Popen(self._command, stderr=self._log)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait()

    def close(self) -> None:
        self._end.set()
        self._sampler.join()
        self._log.close()

    def _sample(self) -> None:
        while not self._end.wait(0.5):
            process = self._process
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])  # type: ignore[union-attr]
            except (OSError, AttributeError, IndexError):
                continue
            self.memory.append((time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE") / 1e6))


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at `folder`; False where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "none", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def kind_of(number: int) -> str:
    if number % 1000 == 999:
        return "poison"
    return "defect" if number % 20 == 0 else "good"


def write(folder: Path, number: int) -> None:
    """A part as a camera writes it: under another name first."""
    data = cv2.imencode(".png", cv2.cvtColor(draw(number, kind_of(number)), cv2.COLOR_RGB2BGR))[1]
    place = folder / f"shift{number // 5000}"
    place.mkdir(exist_ok=True)
    temporary = place / f".{number}"
    temporary.write_bytes(data.tobytes())
    temporary.rename(place / f"{number:06d}.png")


def waiting(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    path = disk / "filler"
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
    except OSError:
        return path


def soak_folder(
    parts: int, kills: int, work: Path, disk: Path, toy: Path, full: bool, marks: dict[str, Any]
) -> Watch:
    random = np.random.default_rng(20)
    at = sorted(int(n) for n in random.choice(int(parts * 0.75), kills, replace=False))
    fills = [int(parts * 0.3), int(parts * 0.6)] if full else []
    folder = work / "in"
    folder.mkdir()
    watch = Watch(work, disk / "line.db", toy, str(folder), "0", "0", "0")
    filler, empty_at, stuck = None, 0.0, 0
    for number in range(parts):
        while waiting(folder) - stuck > _WAITING:
            watch.keep_up()
            time.sleep(0.01)
            if filler is not None and time.monotonic() > empty_at:
                filler.unlink()
                filler = None
        write(folder, number)
        watch.keep_up()
        if fills and number == fills[0]:
            fills.pop(0)
            filler, empty_at = fill(disk), time.monotonic() + _FULL_SECONDS
            marks["full"].append(time.monotonic())
        if at and number == at[0]:
            at.pop(0)
            time.sleep(float(random.uniform(0, 0.3)))
            watch.kill()
            marks["killed"].append(time.monotonic())
        if number % 500 == 0:
            print(f"{number} of {parts}, {watch.starts} starts", file=sys.stderr, flush=True)
    if filler is not None:
        filler.unlink()
    _drain(watch, disk / "line.db", parts)
    return watch


def _drain(watch: Watch, store: Path, parts: int) -> None:
    """Wait until every part is judged, then stop."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        watch.keep_up()
        counts = {}
        if store.exists():
            with Store(store) as opened:
                counts = opened.counts()
        if sum(counts.values()) >= parts and not counts.get("taken"):
            break
        time.sleep(0.5)
    print(f"stopped with {watch.stop()}", file=sys.stderr)


def judge_store(store: Path, expected: dict[str, str]) -> dict[str, Any]:
    """What is wrong with the rows, given the kind of every name."""
    with Store(store) as opened:
        rows = list(opened.parts())
        problems = check(opened)
        events = Counter(kind for _, kind, _ in opened.events())
    names = Counter(row.name for row in rows)
    verdicts = {"good": "good", "defect": "anomalous", "poison": "not_judged"}
    crashed = [r.name for r in rows if r.reasons == ("crashed",) and expected[r.name] != "poison"]
    wrong = [
        row.name
        for row in rows
        if row.name in expected
        and row.verdict != verdicts[expected[row.name]]
        and row.name not in crashed
    ]
    return {
        "rows": len(rows),
        "lost": len(set(expected) - set(names)),
        "unknown": len(set(names) - set(expected)),
        "twice": sum(count > 1 for count in names.values()),
        "unfinished": sum(row.state != "judged" or not row.filed for row in rows),
        "wrong_verdicts": len(wrong),
        "poison_passed_over": sum(expected[r.name] == "poison" for r in rows if r.reasons),
        "not_judged_after_two_kills": len(crashed),
        "check": problems[:5],
        "events": dict(events),
    }


def growth(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Median MB of the second and the last quarter of a run that was not killed."""
    values = [megabytes for _, megabytes in samples]
    quarter = len(values) // 4
    return {
        "second_quarter_mb": round(float(np.median(values[quarter : 2 * quarter])), 1),
        "last_quarter_mb": round(float(np.median(values[3 * quarter :])), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--parts", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--output", type=Path, default=ROOT / "runs/soak-station")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=False)
    work, files = args.output.resolve(), args.parts * 4 // 5
    toy = build_toy_bundle(work / "toy")
    marks: dict[str, list[float]] = {"killed": [], "full": []}
    began = time.monotonic()
    with small_disk(work / "disk") as mounted:
        disk = work / "disk"
        folder = soak_folder(files, args.kills, work, disk, toy, mounted, marks)
        folder.close()
        names = {f"shift{n // 5000}/{n:06d}.png": kind_of(n) for n in range(files)}
        report: dict[str, Any] = {"folder": judge_store(disk / "line.db", names)}
        frames = args.parts - files
        camera = Watch(work, disk / "camera.db", toy, FAKE, "0", str(frames), "3")
        camera.keep_up()
        _drain(camera, disk / "camera.db", frames)
        camera.close()
        kinds = {
            f"camera {FAKE} frame {n + 1}": "good" if n % 20 else "defect" for n in range(frames)
        }
        report["camera"] = judge_store(disk / "camera.db", kinds)
    report |= {
        "parts": args.parts,
        "killed": len(marks["killed"]),
        "disk_full": len(marks["full"]),
        "starts": folder.starts,
        "memory": growth(camera.memory),
        "seconds": round(time.monotonic() - began),
        "machine": machine(1),
    }
    (work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    panels = [
        (name, [(0, round(at - watch.memory[0][0]), mb) for at, mb in watch.memory])
        for name, watch in (("killed, its disk filled", folder), ("a camera that is lost", camera))
    ]
    write_plot(work / "memory.svg", panels, "seconds")
    print(json.dumps(report, indent=1))
    bad = ("lost", "unknown", "twice", "unfinished", "wrong_verdicts", "check")
    return int(any(report[run][name] for run in ("folder", "camera") for name in bad))


if __name__ == "__main__":
    raise SystemExit(main())
