"""Mutated images, bundles, manifests and results: only our own errors, no hang, bounded memory.

    make fuzz                                         a few minutes of everything
    python tests/fuzz/fuzz.py images --count 100000   as many images, from where the last run ended
    python tests/fuzz/fuzz.py bundles --start 0 --count 200 --seed 7

Case N of a seed is always the same one. Every case runs in a process that is watched: one that
raises anything but ClipSAMError, takes over 5 s or grows over the cap is written to the folder
with its number. The folder also keeps how far a run got: the next one goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `support`

import numpy as np
from support.image_files import colour, encode, encode_tiff, picture
from support.toy_bundle import build_toy_bundle, hashes

from clipsam.runtime import Bundle, ClipSAM, ClipSAMError, read_image
from clipsam.runtime.results.index import JOURNAL, RESULTS, row_line
from clipsam.runtime.results.jobs import find_jobs
from clipsam.runtime.results.record import Record

HANG_S, CAP_MB = 5, 1500  # a case's time; the address space that a process may add to its own
BATCH = 250  # cases a process: a leak shows within it, its end costs a second

# Small and large on purpose, and values at the edges of what fields can hold.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1e30, 1e999, 10**30, 0.5, "", "x", "\0", "\ud800", "a" * 500),
    *([], {}, [[]], {"a": {}}, "../a", "/etc/passwd", "CON", "engines", 1 << 31, -(1 << 63)),
)


def image_seeds() -> list[bytes]:
    """One file of every kind that the reader knows."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    found = [encode(a, kind) for a in (picture(), noise) for kind in ("PNG", "JPEG", "BMP", "WEBP")]
    found += [encode(colour(mode), "PNG") for mode in ("L", "P", "1", "RGBA", "LA")]
    found += [encode(noise, "JPEG", progressive=True), encode(noise, "WEBP", lossless=True)]
    found += [encode(noise, "JPEG", restart_marker_blocks=2), encode(colour("CMYK"), "JPEG")]
    for compression in (None, "zlib"):
        for options in ({}, {"bigtiff": True}, {"byteorder": ">"}, {"rowsperstrip": 7}):
            found.append(encode_tiff(noise, photometric="rgb", compression=compression, **options))
    found.append(encode_tiff(noise, photometric="rgb", tile=(16, 16), compression="zlib"))
    found.append(encode(noise, "TIFF", compression="tiff_lzw"))
    return found


def mutate(data: bytes, draw: random.Random, other: bytes) -> bytes:
    """Bytes flipped, cut, doubled, moved, overwritten by edge values or by another file's."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        size = len(changed)
        if not size:
            break
        near = draw.choice((40, 200, size))  # headers are small, and most is decided there
        at = draw.randrange(min(size, near))
        kind = draw.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, draw.randrange(256)))
        elif kind == 2:
            width = draw.choice((2, 4, 8))
            value = draw.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, size, at))
            number = (value % (1 << 8 * width)).to_bytes(width, "little")
            changed[at : at + width] = number if draw.random() < 0.5 else number[::-1]
        elif kind == 3:
            del changed[at : at + draw.choice((1, 2, 8, 100, size))]
        elif kind == 4:
            end = at + draw.randrange(1, 200)
            changed[at:at] = changed[at:end]
        elif kind == 5:
            start = draw.randrange(len(other))
            piece = other[start : start + draw.randrange(1, 100)]
            changed[at : at + len(piece)] = piece
        else:
            changed[at : at + draw.randrange(1, 300)] = draw.randbytes(draw.randrange(1, 300))
    return bytes(changed)


def mutate_json(values: Any, draw: random.Random) -> Any:
    """One value somewhere inside replaced, removed or added."""
    at = values
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = draw.choice(keys)
        inner = at[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
            at = inner
            continue
        kind = draw.randrange(4)
        if kind == 0:
            del at[key]
        elif kind == 1 and isinstance(at, dict):
            at[draw.choice([k for k in ODD if isinstance(k, str)])] = inner
        else:
            at[key] = draw.choice(ODD)
        return values


class Images:
    def __init__(self, work: Path) -> None:
        self.path, self.seeds = work / "case", image_seeds()

    def run(self, draw: random.Random) -> str:
        data = mutate(draw.choice(self.seeds), draw, draw.choice(self.seeds))
        self.path.write_bytes(data)
        read_image(self.path)
        return "read"


class Manifests:
    """The manifest's values and text, with every other file as it should be."""

    def __init__(self, work: Path) -> None:
        self.folder = build_toy_bundle(work / "bundle")
        self.text = (self.folder / "manifest.json").read_text("utf-8")

    def run(self, draw: random.Random) -> str:
        path = self.folder / "manifest.json"
        if draw.random() < 0.2:
            data = self.text.encode()
            path.write_bytes(mutate(data, draw, data))
        else:
            values = json.loads(self.text)
            for _ in range(draw.choice((1, 1, 2, 3))):
                mutate_json(values, draw)
            path.write_text(json.dumps(values))
        Bundle.open(self.folder)
        return "opened"


class Bundles:
    """Files mutated, with their new hashes in the manifest, as whoever sends a bundle would."""

    def __init__(self, work: Path) -> None:
        self.pristine = build_toy_bundle(work / "pristine")
        self.folder, self.image = work / "bundle", picture()

    def run(self, draw: random.Random) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.pristine, self.folder)
        names = [n for n in hashes(self.folder) if n != "parity.json"]
        for name in draw.sample(names, draw.choice((1, 1, 2))):
            data = (self.folder / name).read_bytes()
            (self.folder / name).write_bytes(mutate(data, draw, data))
        values = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        if draw.random() < 0.9:
            values["files"] = hashes(self.folder)
        if draw.random() < 0.1:
            mutate_json(values, draw)
        (self.folder / "manifest.json").write_text(json.dumps(values))
        with ClipSAM.open(self.folder, threads=1) as model:
            model.inspect(self.image)
        return "inspected"


class Results:
    """The record of earlier judgements and its journal: what is damaged counts for nothing."""

    def __init__(self, work: Path) -> None:
        self.folder, self.rows = work / "out", [self.row(number) for number in range(6)]
        self.bystander = work / ".bystander.mask.png.0123456789abcdef"
        self.bystander.touch()

    @staticmethod
    def row(number: int) -> dict[str, Any]:
        name = ("a", "ä b", "deep/c", "x" * 60, "d.e", "f")[number]
        row = {"image": f"{name}.png", "stem": name, "sha256": f"{number:064x}", "settings": "5e"}
        return row | ({"verdict": "good", "regions": [[0.5]]} if number else {"error": "damaged"})

    def run(self, draw: random.Random) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "deep").mkdir(parents=True)
        lines = [row_line(row) for row in self.rows]
        data, journal = b"".join(lines), json.dumps({"g": "g.png", "deep/h": "h.jpg"}).encode()
        kind = draw.randrange(4)
        if kind < 3:
            data = mutate(data, draw, b"".join(lines))
        if kind > 1:
            journal = mutate(journal, draw, data or b"x")
            (self.folder / JOURNAL).write_bytes(journal)
        (self.folder / RESULTS).write_bytes(data)
        (self.folder / "g.mask.png").touch()
        whole = [
            row
            for row, line in zip(self.rows, lines, strict=True)
            if line[:-1] in data.split(b"\n")
        ]
        find_jobs([self.folder]) if draw.random() < 0.1 else None
        with Record(self.folder) as record:
            self.check(record, whole)
            record.plan({"new": "new.png"})
            new = {**self.row(1), "image": "new.png", "stem": "new"}
            record.add_row(new)
        with Record(self.folder) as record:
            self.check(record, [*whole, new])
        assert self.bystander.exists()
        return "opened"

    def check(self, record: Any, whole: list[dict[str, Any]]) -> None:
        for row in (*self.rows, *whole):
            stands = record.stands(row["image"], row["sha256"], row["settings"])
            assert stands == (row in whole and "verdict" in row), row


TARGETS: dict[str, Callable[[Path], Any]] = {
    "images": Images,
    "manifests": Manifests,
    "bundles": Bundles,
    "results": Results,
}


def batch(target: str, seed: int, first: int, count: int, folder: Path) -> None:
    """Run cases in this process; its last line written is the case that it died of, if it did."""
    progress = (folder / "current").open("w", buffering=1)
    with tempfile.TemporaryDirectory() as work:
        subject = TARGETS[target](Path(work))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (CAP_MB << 20),) * 2)
        outcomes: Counter[str] = Counter()
        for number in range(first, first + count):
            progress.seek(0)
            progress.write(f"{number:12d}")
            signal.alarm(HANG_S)  # nothing catches it: the process ends
            try:
                outcome = subject.run(random.Random(f"{target} {seed} {number}"))
            except ClipSAMError as error:
                outcome = type(error).__name__
            except Exception:
                outcome = "FOREIGN"
                (folder / f"{target}-{seed}-{number}.txt").write_text(traceback.format_exc())
            outcomes[outcome] += 1
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        (folder / "done").write_text(json.dumps({"outcomes": outcomes, "peak_mb": peak}))


def watch(target: str, options: argparse.Namespace) -> int:
    """Cases in batches, each in a process of its own; the number of cases that went wrong."""
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"{target}-{options.seed}.json"
    kept = json.loads(state.read_text()) if state.exists() and options.start is None else {}
    outcomes = Counter(kept.get("outcomes", {}))
    peak, next_ = kept.get("peak_mb", 0), kept.get("next", options.start or 0)
    until, limit = next_ + options.count, time.monotonic() + options.seconds
    while next_ < until and time.monotonic() < limit:
        count = min(BATCH, until - next_)
        (folder / "done").unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders print of damaged files
            try:
                batch(target, options.seed, next_, count, folder)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if (folder / "done").exists():
            done = json.loads((folder / "done").read_text())
            outcomes.update(done["outcomes"])
            peak = max(peak, done["peak_mb"])
            next_ += count
        else:  # the cases before it were well, and are not counted twice
            number = int((folder / "current").read_text() or next_)
            how = "HANG" if os.WTERMSIG(status) == signal.SIGALRM else f"KILLED {status}"
            (folder / f"{target}-{options.seed}-{number}.txt").write_text(how)
            outcomes.update({how: 1, "before it": number - next_})
            next_ = number + 1
        state.write_text(json.dumps({"outcomes": outcomes, "peak_mb": peak, "next": next_}))
    wrong = sum(n for how, n in outcomes.items() if how.isupper() or how.startswith("KILLED"))
    print(f"{target}: {next_} cases of seed {options.seed}, {wrong} wrong, peak {peak} MB")
    print(f"  {', '.join(f'{how} {n}' for how, n in outcomes.most_common())}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--count", type=int, default=1 << 60, help="cases of each target")
    parser.add_argument("--seconds", type=float, default=60, help="time of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, help="first case (default: where the last run ended)")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    return 1 if sum(watch(target, options) for target in options.targets or TARGETS) else 0


if __name__ == "__main__":
    sys.exit(main())
