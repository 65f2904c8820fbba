"""Inspect files and folders: what the `clipsam inspect` command does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from clipsam.runtime.errors import ClipSAMError, ImageError, OutputError
from clipsam.runtime.image_io import SUFFIXES, read_image, write_png, write_score_tiff
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.render import overlay

RESULTS = "results.jsonl"


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


def find_jobs(inputs: Sequence[Path]) -> list[Job]:
    """All images of the files and folders given, folders searched through, in a fixed order.

    A file keeps its name, an image in a folder its path relative to that folder. Raises ImageError
    when there is nothing, or when two images would write the same files.
    """
    found: list[tuple[Path, PurePath]] = []
    for given in inputs:
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES)
            found += [(p, p.relative_to(given)) for p in inside if p.is_file()]
            if not inside:
                raise ImageError(f"{given} holds no image ({', '.join(SUFFIXES)}).")
        else:
            found.append((given, PurePath(given.name)))
    stems = [name.with_suffix("") for _, name in found]
    # part.png and part.jpg side by side keep their suffixes, so that neither overwrites the other.
    jobs = [
        Job(source, name, stem if stems.count(stem) == 1 else name)
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
    `resume`, images whose line is already there (for this bundle and category) are skipped.
    Raises OutputError when the folder cannot be written, CategoryError before anything is.
    """
    model.bundle.text(category)  # an unknown category fails here, not at the first image
    path = output / RESULTS
    done = _finished(path, model.bundle.id, category) if resume else {}
    counts = Counts()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as lines:
            for line in done.values():
                lines.write(json.dumps(line) + "\n")
            for number, job in enumerate(jobs, start=1):
                if str(job.name) in done:
                    counts.skipped += 1
                else:
                    row = _inspect_one(model, job, output, category, norm, deadline_ms, counts)
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                progress(number, len(jobs), counts)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written ({error.strerror}): free some space or choose another "
            "--output."
        ) from error
    return counts


def _inspect_one(
    model: ClipSAM,
    job: Job,
    output: Path,
    category: str,
    norm: str | None,
    deadline_ms: float | None,
    counts: Counts,
) -> dict[str, Any]:
    try:
        image = read_image(job.source)
        result = model.inspect(image, category, norm=norm, deadline_ms=deadline_ms)
    except OutputError:
        raise
    except ClipSAMError as error:
        counts.failed += 1
        print(f"error: {error}", file=sys.stderr)
        return {"image": str(job.name), "error": str(error)}
    base = output / job.stem
    write_png(base.with_name(f"{base.name}.overlay.png"), overlay(image, result))
    write_png(base.with_name(f"{base.name}.mask.png"), result.mask.astype(np.uint8) * 255)
    write_score_tiff(base.with_name(f"{base.name}.score.tiff"), result.score_map)
    if result.anomalous:
        counts.anomalous += 1
    else:
        counts.good += 1
    return {"image": str(job.name), **result.to_dict()}


def _finished(path: Path, bundle: str, category: str) -> dict[str, dict[str, Any]]:
    """Lines of an earlier run that stand, by image name; a cut-off last line is dropped."""
    return {
        row["image"]: row
        for row in _rows(path)
        if "error" not in row and row.get("bundle") == bundle and row.get("category") == category
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "image" in row:
            yield row
