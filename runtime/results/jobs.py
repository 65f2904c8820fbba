"""Which pictures a run inspects, and which files it writes for each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from clipsam.runtime.core.errors import ImageError, OutputError
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.images.reader import SUFFIXES
from clipsam.runtime.results.index import RESULTS, Index, read_index
from clipsam.runtime.results.names import ENDINGS, fold, stems

_LOG = get_logger("results")


@dataclass(frozen=True)
class Job:
    """One picture to inspect, and its name relative to the input it was found in."""

    source: Path
    name: PurePath

    @property
    def image(self) -> str:
        """The name as `results.jsonl` lists it."""
        return self.name.as_posix()


def find_jobs(inputs: Sequence[Path]) -> list[Job]:
    """All pictures of the files and folders given, folders searched through, in a fixed order.

    A file keeps its name, a picture in a folder its path relative to that folder. Files that a
    record lists as written by an inspection are no pictures. Links to folders are not followed,
    and what is neither a file nor a folder is not read: a warning is logged. Raises ImageError
    when there is nothing, when a folder cannot be read, or when two pictures have one name.
    """
    jobs: list[Job] = []
    written = Written()
    for given in inputs:
        if given.is_dir():
            inside = pictures_below(given, written)
            if not inside:
                raise ImageError(
                    f"{given} holds no image ({', '.join(SUFFIXES)}): give another folder."
                )
            jobs += [Job(path, path.relative_to(given)) for path in inside]
        elif given.exists() and not given.is_file():
            raise ImageError(f"{given} is neither a file nor a folder: give one of them.")
        else:
            jobs.append(Job(given, PurePath(given.name)))
    taken: dict[PurePath, Path] = {}
    for job in jobs:
        if job.name in taken:
            raise ImageError(
                f"{taken[job.name]} and {job.source} would write the same files: inspect them into "
                "different --output folders."
            )
        taken[job.name] = job.source
    return jobs


def pictures_below(folder: Path, written: Written | None = None) -> list[Path]:
    """Every picture below a folder in a fixed order, as `find_jobs` finds them; [] for none.

    `written` is shared by searches of several folders. Raises ImageError.
    """
    written = written or Written()
    return sorted(path for path in _walk(folder) if not written(path))


def choose_stems(jobs: Sequence[Job], output: Path, index: Index) -> list[str]:
    """What the files of every job begin with, relative to `output`; `index` is its record's.

    Raises OutputError when a file is there that the record did not write.
    """
    options = [stems(job.name) for job in jobs]
    shared = Counter(fold(choices[0]) for choices in options)
    taken: set[str] = set()
    chosen = []
    for job, choices in zip(jobs, options, strict=True):
        # part.png and part.jpg side by side keep their suffixes, whichever comes first.
        for stem in choices[shared[fold(choices[0])] > 1 :]:
            key = fold(stem)
            own = index.wrote(stem, job.image)
            if key not in taken and (own or not index.wrote(stem)):
                break
        taken.add(key)
        chosen.append(stem)
        if not own:
            for path in (output / (stem + ending) for ending in ENDINGS):
                if os.path.lexists(path):
                    raise OutputError(
                        f"{path} is there already and was not written by an inspection into "
                        f"{output}: move it away, or choose another --output."
                    )
    return chosen


class Written:
    """Tells the files of earlier inspections, by the records of the folders they lie in."""

    def __init__(self) -> None:
        self._records: dict[Path, Index | None] = {}

    def __call__(self, path: Path) -> bool:
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None:
            return False
        place = path.parent.resolve() / path.name.removesuffix(ending)
        return any(
            (index := self._record(folder)) is not None
            and index.wrote(place.relative_to(folder).as_posix())
            for folder in place.parents
        )

    def _record(self, folder: Path) -> Index | None:
        if folder not in self._records:
            there = (folder / RESULTS).is_file()
            self._records[folder] = read_index(folder) if there else None
        return self._records[folder]


def _walk(given: Path) -> Iterator[Path]:
    """Every picture below a folder."""

    def unreadable(error: OSError) -> None:
        raise ImageError(
            f"{error.filename} cannot be read ({error.strerror}): allow it, or give the folders "
            "beside it."
        ) from error

    for folder, folders, files in os.walk(given, onerror=unreadable):
        for name in folders:
            if (path := Path(folder, name)).is_symlink():
                _LOG.warning(
                    "%s is a link to a folder and was not followed: give it as an input.", path
                )
        for path in (Path(folder, name) for name in files):
            if path.suffix.lower() not in SUFFIXES:
                continue
            if path.exists() and not path.is_file():
                _LOG.warning("%s is no regular file and was left out.", path)
            else:  # a link to nothing is a picture that cannot be read
                yield path
