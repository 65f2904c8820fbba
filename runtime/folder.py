"""Inspect files and folders: what the `clipsam inspect` command does."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from clipsam.runtime.core.errors import ClipSAMError, ImageError, OutputError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.images.overlay import overlay
from clipsam.runtime.images.reader import SUFFIXES, write_png, write_score_tiff
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stream import Inspected

RESULTS = "results.jsonl"
OVERLAY, MASK, SCORE = ENDINGS = (".overlay.png", ".mask.png", ".score.tiff")


@dataclass(frozen=True)
class Job:
    """One image to inspect and the name, relative to the output folder, its files get."""

    source: Path
    name: PurePath  # as `results.jsonl` lists it, with the image's suffix
    stem: PurePath  # what ".overlay.png" and the others are appended to


@dataclass
class Counts:
    """What a run came to."""

    good: int = 0
    anomalous: int = 0
    failed: int = 0
    skipped: int = 0


def find_jobs(inputs: Sequence[Path], output: Path | None = None) -> list[Job]:
    """All images of the files and folders given, folders searched through, in a fixed order.

    A file keeps its name, an image in a folder its path relative to that folder. Results of an
    earlier run into `output` are no images, should it lie in a folder given. Raises ImageError
    when there is nothing, or when two images would write the same files.
    """
    found: list[tuple[Path, PurePath]] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES)
            if output is not None and output.resolve().is_relative_to(given.resolve()):
                inside = [p for p in inside if not _is_result(p, output)]
            images = [(p, p.relative_to(given)) for p in inside if p.is_file()]
            if not images:
                raise ImageError(
                    f"{given} holds no image ({', '.join(SUFFIXES)}): give another folder."
                )
            found += images
        else:
            found.append((given, PurePath(given.name)))
    stems = [name.with_suffix("") for _, name in found]
    uses = Counter(stems)
    # part.png and part.jpg side by side keep their suffixes, so that neither overwrites the other.
    jobs = [
        Job(source, name, stem if uses[stem] == 1 else name)
        for (source, name), stem in zip(found, stems, strict=True)
    ]
    taken: dict[PurePath, Path] = {}
    for job in jobs:
        if job.stem in taken:
            raise ImageError(
                f"{taken[job.stem]} and {job.source} would write the same files: inspect them into "
                "different --output folders."
            )
        taken[job.stem] = job.source
    return jobs


def _is_result(path: Path, output: Path) -> bool:
    return path.name.endswith(ENDINGS) and path.resolve().is_relative_to(output.resolve())


def inspect_files(
    model: ClipSAM,
    jobs: Sequence[Job],
    output: Path,
    *,
    category: str,
    norm: str | None = None,
    deadline_ms: float | None = None,
    resume: bool = False,
    progress: Callable[[int, int, Counts], None] = lambda done, total, counts: None,
) -> Counts:
    """Inspect every job; write overlay, mask and score map, and a line in `results.jsonl`.

    An image that cannot be read costs one line on stderr and in the results, not the run. With
    `resume`, images whose line is already there (for this bundle, category and norm) are skipped.
    Images are read, inspected and written at the same time (`ClipSAM.inspect_many`); with a
    deadline one after another, so that none waits for another while its time runs.
    Raises OutputError when the folder cannot be written, CategoryError before anything is.
    """
    model.bundle.text(category)  # an unknown category fails here, not at the first image
    path = output / RESULTS
    counts = Counts()
    try:
        wanted = {
            "bundle": model.bundle.id,
            "category": category,
            "norm": norm or model.bundle.manifest.fusion.norm,
        }
        done = _finished(path, wanted) if resume else {}
        # Whole or not at all: a run that is cut off here must not lose the lines of the last one.
        write_bytes(path, "".join(json.dumps(row) + "\n" for row in done.values()).encode())
        line = model.inspect_many(
            [job.source for job in jobs if str(job.name) not in done],
            category,
            norm=norm,
            deadline_ms=deadline_ms,
            ahead=None if deadline_ms is None else 0,
        )
        with closing(line), path.open("a", encoding="utf-8") as lines:
            for number, job in enumerate(jobs, start=1):
                if str(job.name) in done:
                    counts.skipped += 1
                else:
                    row = _write(next(line), job, output, counts)
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                progress(number, len(jobs), counts)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written ({error.strerror}): free some space or choose another "
            "--output."
        ) from error
    return counts


def _write(part: Inspected, job: Job, output: Path, counts: Counts) -> dict[str, Any]:
    """Write the files of one part; returns its line."""
    if isinstance(part.outcome, ClipSAMError):
        counts.failed += 1
        print(f"error: {part.outcome}", file=sys.stderr)
        return {"image": str(job.name), "error": str(part.outcome)}
    image, result = part.image, part.outcome
    assert image is not None  # there is no result without one
    base = output / job.stem
    write_png(base.with_name(base.name + OVERLAY), overlay(image, result))
    write_png(base.with_name(base.name + MASK), result.mask.astype(np.uint8) * 255)
    write_score_tiff(base.with_name(base.name + SCORE), result.score_map)
    if result.anomalous:
        counts.anomalous += 1
    else:
        counts.good += 1
    return {"image": str(job.name), **result.to_dict()}


def _finished(path: Path, wanted: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Lines of an earlier run that stand, by image name; a cut-off last line is dropped."""
    return {
        row["image"]: row
        for row in _rows(path)
        if "error" not in row and wanted.items() <= row.items()
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("image"), str):
            yield row
