"""Inspect files and folders: what the `clipsam inspect` command does."""

from __future__ import annotations

import errno
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipsam.runtime.core.errors import ClipSAMError, DamagedError, ImageError, OutputError
from clipsam.runtime.core.files import not_written, sha256
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.core.result import DAMAGED, NOT_JUDGED, UNREADABLE, Result
from clipsam.runtime.images.caption import captioned
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import MAX_BYTES, write_png, write_score_tiff
from clipsam.runtime.part import Inspected, too_large
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.results.index import RESULTS, Index, read_index, settings_digest
from clipsam.runtime.results.jobs import Job, choose_stems, find_jobs
from clipsam.runtime.results.names import ENDINGS, EVERYTHING, MASK, OVERLAY, Save
from clipsam.runtime.results.record import Record

__all__ = ["Counts", "find_jobs", "inspect_files"]

_LOG = get_logger("results")


@dataclass
class Counts:
    """What a run came to."""

    good: int = 0
    anomalous: int = 0
    not_judged: int = 0
    failed: int = 0  # by no fault of the picture
    skipped: int = 0

    def add(self, verdict: str) -> None:
        """Count one more of this verdict."""
        setattr(self, verdict, getattr(self, verdict) + 1)

    def __str__(self) -> str:
        return (
            f"{self.good} good, {self.anomalous} anomalous"
            + (f", {self.not_judged} not judged" if self.not_judged else "")
            + (f", {self.failed} could not be inspected" if self.failed else "")
        )

    @property
    def exit_code(self) -> int:
        """Of a command that ends with this."""
        return 1 if self.failed else 3 if self.not_judged else 0


@dataclass(frozen=True)
class _Seen:
    """A job whose turn came: what its file was then."""

    job: Job
    stem: str
    sha256: str | None  # None where it cannot be read
    state: tuple[int, ...] | None  # of the file when it was hashed
    skipped: bool


def inspect_files(
    model: ClipSAM,
    jobs: Sequence[Job],
    output: Path,
    *,
    category: str | None,
    norm: str | None = None,
    deadline_ms: float | None = None,
    resume: bool = False,
    save: Save = EVERYTHING,
    progress: Callable[[int, int, Counts], None] = lambda done, total, counts: None,
) -> Counts:
    """Inspect every job; write the files that `save` says, and add a row to `results.jsonl`.

    A picture that cannot be inspected costs a logged error and a row, not the run.
    With `resume`, pictures are skipped whose row stands: same name, same content, and everything
    else that decides the answer the same. Files of a picture that was judged before are replaced,
    its row stays. Images are read, inspected and written at the same time (`ClipSAM.inspect_many`);
    with a deadline one after another, so that none waits for another while its time runs.
    Raises OutputError when the folder cannot be written, is being written by another process, or
    holds a file that this would overwrite and no inspection wrote; CategoryError. In the latter
    cases nothing was written.
    """
    category = model.word(category)
    model.bundle.text(category)  # an unknown category fails here, not at the first image
    settings = settings_digest(
        {
            "bundle": model.bundle.id,
            "category": category,
            "norm": norm or model.bundle.manifest.fusion.norm,
            "deadline_ms": deadline_ms,
            "provider": model.provider,
            "precisions": model.precisions,
            **model.options.settings(),
            "calibration": model.calibration.id if model.calibration else "",
            **({} if save == EVERYTHING else {"save": str(save)}),  # files that are missing stay so
        }
    )
    counts = Counts()
    try:
        if not (output / RESULTS).exists():
            choose_stems(jobs, output, read_index(output))  # a refusal leaves no empty record
        with Record(output) as record:
            chosen = choose_stems(jobs, output, record)
            record.plan({stem: job.image for stem, job in zip(chosen, jobs, strict=True)})
            begun: deque[_Seen] = deque()
            line = model.inspect_many(
                _sources(jobs, chosen, record if resume else Index(), settings, begun),
                category,
                norm=norm,
                deadline_ms=deadline_ms,
                ahead=None if deadline_ms is None else 0,
            )
            with closing(line):
                for number, (seen, part) in enumerate(_in_order(line, begun), start=1):
                    if part is None:
                        counts.skipped += 1
                    else:
                        _write(part, seen, output, record, settings, counts, save)
                    progress(number, len(jobs), counts)
    except OSError as error:
        raise not_written(output / RESULTS, error) from error
    return counts


def _sources(
    jobs: Sequence[Job], chosen: Sequence[str], done: Index, settings: str, begun: deque[_Seen]
) -> Iterator[Path]:
    """The files to inspect, each hashed when its turn comes; tells of every job by `begun`."""
    for job, stem in zip(jobs, chosen, strict=True):
        digest, state = _fingerprint(job.source)
        skipped = digest is not None and done.stands(job.image, digest, settings)
        begun.append(_Seen(job, stem, digest, state, skipped))
        if not skipped:
            yield job.source


def _in_order(
    line: Iterator[Inspected], begun: deque[_Seen]
) -> Iterator[tuple[_Seen, Inspected | None]]:
    """Every job in its place, with None for those that were skipped."""
    for part in line:
        while (seen := begun.popleft()).skipped:
            yield seen, None
        yield seen, part
        del part  # or its image would stay while the next is waited for
    while begun:
        yield begun.popleft(), None


def _write(
    part: Inspected,
    seen: _Seen,
    output: Path,
    record: Record,
    settings: str,
    counts: Counts,
    save: Save,
) -> None:
    """Write the files of one part, then its row."""
    image, result = part.image, part.outcome
    row = {"image": seen.job.image, "sha256": seen.sha256, "settings": settings}
    try:
        if isinstance(result, ClipSAMError):
            raise result
        assert image is not None  # there is no result without one
        if seen.state != _state(seen.job.source):
            raise ImageError(f"{seen.job.source} was written to meanwhile: inspect it again.")
        source = str(seen.job.source.absolute())
        row = {"image": seen.job.image, "stem": seen.stem, "source": source, **row}
        _write_files(output, seen, image, result, save.of(result.verdict))
        record.add_row({**row, **result.to_dict()})
    except ClipSAMError as error:
        if isinstance(error, OutputError) and not _name_too_long(error):
            raise  # nor could the next one be written
        _LOG.error("%s", error)
        failed: dict[str, Any] = {"error": str(error)}
        if isinstance(error, ImageError):
            reason = DAMAGED if isinstance(error, DamagedError) else UNREADABLE
            failed |= {"verdict": NOT_JUDGED, "reasons": [reason]}
        record.add_row({**row, **failed})
        counts.add(NOT_JUDGED if "verdict" in failed else "failed")
    else:
        counts.add(result.verdict)


def _write_files(
    output: Path, seen: _Seen, image: Image, result: Result, endings: Collection[str]
) -> None:
    """Overlay, mask and score map, those of them that are wanted; the others of an earlier
    judgement are removed, or they would pass for this one's."""
    try:
        for ending in ENDINGS:
            path = output / (seen.stem + ending)
            if ending not in endings:
                path.unlink(missing_ok=True)
            elif ending == OVERLAY:
                write_png(path, captioned(image, result, seen.job.image))
            elif ending == MASK:
                write_png(path, result.mask.astype(np.uint8) * 255)
            else:
                write_score_tiff(path, result.score_map)
    except MemoryError as error:
        raise too_large(seen.job.source) from error


def _name_too_long(error: OutputError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENAMETOOLONG


def _fingerprint(path: Path) -> tuple[str | None, tuple[int, ...] | None]:
    """sha256 of a regular file that the reader takes, and its state just before."""
    state = _state(path)
    try:
        return (sha256(path, MAX_BYTES) if state is not None else None), state
    except OSError:
        return None, state


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when the file is written to; None where there is no regular file."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    regular = stat.S_ISREG(found.st_mode)
    return (found.st_size, found.st_mtime_ns, found.st_ino) if regular else None
