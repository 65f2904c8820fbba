"""Which pictures a batch inspects: files of folders and patterns, and rows of Parquet files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from fsspec.utils import glob_translate
from pyarrow import fs

from clipsam.runtime.batch.places import Place
from clipsam.runtime.core.errors import ImageError, OptionError
from clipsam.runtime.images.reader import SUFFIXES
from clipsam.runtime.results.jobs import Written, pictures_below

PARQUET = ".parquet"
_FOOTERS = 16  # that are read at the same time, as an object store takes its time for each
_HIDDEN = re.compile(r"(^|/)[_.]")  # what Spark and others leave beside their Parquet files


@dataclass(frozen=True)
class Columns:
    """Of Parquet files: which column holds the pictures, and which one names them.

    Attributes:
      image: of bytes, or of structs with a field `bytes`; None: the only one that there is.
      id: kept beside the results; None: none.
    """

    image: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Source:
    """A picture file, or a row group of a Parquet file.

    Attributes:
      name: what the results call it; a picture in a row group is NAME#ROW, counted in the file.
      address: of its file system, see `Place`.
      path: within that.
      size: bytes of the file.
      mtime_ns: when it was written.
      row_group: of a Parquet file; -1 for a picture file.
      first: number of the row group's first row.
      pictures: how many it holds.
    """

    name: str
    address: str
    path: str
    size: int
    mtime_ns: int
    row_group: int = -1
    first: int = 0
    pictures: int = 1

    @property
    def place(self) -> Place:
        """Where the file is."""
        return Place(self.address, self.path)


def find_sources(inputs: Sequence[str], columns: Columns, output: Place) -> list[Source]:
    """All pictures of files, folders (searched through) and patterns, in a fixed order.

    A picture is called by its path below the folder given, or below what precedes the first
    wildcard of a pattern. A folder without a picture is taken for one of Parquet files. Those in
    `output` are left out, and what several inputs have in common is taken once.
    Raises ImageError when there is nothing, when something cannot be read, or when two pictures
    have one name; OptionError for an address that cannot be opened, or columns that do not fit.
    """
    found: dict[tuple[str, str], Source] = {}
    named: dict[str, str] = {}
    written = Written()
    for given in inputs:
        try:
            files = [f for f in _files(given, written) if not _is_result(f, output)]
        except OSError as error:
            raise _unreadable(given, error) from error
        if not files:
            raise ImageError(
                f"{given} holds no image ({', '.join(SUFFIXES)}) and no {PARQUET} file: give "
                "another folder or pattern."
            )
        for file in files:
            _check_unicode(file.path)
            if found.setdefault((file.address, file.path), file) is file:
                if file.name in named:
                    raise ImageError(
                        f"{named[file.name]} and {file.place} would both be called {file.name} in "
                        "the results: give the folder above them, or write each to its own OUTPUT."
                    )
                named[file.name] = str(file.place)
    return list(_with_row_groups(found.values(), columns))


def _check_unicode(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{path!r} has a name that is not Unicode, which Parquet cannot hold: rename it."
        ) from error


def _is_result(file: Source, output: Place) -> bool:
    inside = file.address == output.address and file.path.startswith(f"{output.path}/")
    return inside and _is_parquet(file)


def _files(given: str, written: Written) -> Iterable[Source]:
    fixed, pattern = _split(given)
    place = Place.of(fixed)
    if pattern:
        fits = re.compile(glob_translate(pattern)).match
        inside = _listed(place, (*SUFFIXES, PARQUET))
        return [source for source in inside if fits(source.name)]
    kind = place.kind()
    if kind == fs.FileType.NotFound:
        raise ImageError(f"{given} does not exist: check the path.")
    if kind == fs.FileType.File:
        if not place.path.lower().endswith((*SUFFIXES, PARQUET)):
            raise ImageError(
                f"{given} is no image ({', '.join(SUFFIXES)}) and no {PARQUET} file: give another."
            )
        info = place.files.get_file_info(place.path)
        return [_source(place, info, posixpath.dirname(place.path))]
    if kind != fs.FileType.Directory:
        raise ImageError(f"{given} is neither a file nor a folder: give one of them.")
    if place.local:
        found = [_local(place, path) for path in pictures_below(Path(place.path), written)]
    else:
        found = _listed(place, SUFFIXES)
    return found or [s for s in _listed(place, (PARQUET,)) if not _HIDDEN.search(s.name)]


def _split(given: str) -> tuple[str, str]:
    """What precedes the first component with a wildcard, and the rest: "" where there is none.

    In an address a question mark begins its options, which stay with what precedes.
    """
    remote = "://" in given
    if not remote and Path(given).exists():
        return given, ""
    text, mark, options = given.partition("?") if remote else (given, "", "")
    parts = text.split("/")
    wild = [any(c in part for c in ("*[" if remote else "*?[")) for part in parts]
    if not any(wild):
        return given, ""
    first = wild.index(True)
    fixed = "/".join(parts[:first]) or ("/" if text.startswith("/") else ".")
    return fixed + mark + options, "/".join(parts[first:])


def _listed(place: Place, endings: tuple[str, ...]) -> list[Source]:
    found = place.files_below()
    return [_source(place, i, place.path) for i in found if i.path.lower().endswith(endings)]


def _source(place: Place, info: Any, folder: str) -> Source:
    name = posixpath.relpath(info.path, folder)
    return Source(name, place.address, info.path, info.size or 0, info.mtime_ns or 0)


def _local(place: Place, path: Path) -> Source:
    """A picture on this machine; what cannot be read is found out when its turn comes."""
    try:
        status = path.stat()
        size, mtime = status.st_size, status.st_mtime_ns
    except OSError:
        size = mtime = 0
    text = path.as_posix()
    return Source(posixpath.relpath(text, place.path), place.address, text, size, mtime)


def _with_row_groups(files: Iterable[Source], columns: Columns) -> Iterator[Source]:
    """Pictures as they are, Parquet files as their row groups."""
    files = list(files)
    tables = [file for file in files if _is_parquet(file)]
    with ThreadPoolExecutor(_FOOTERS) as pool:
        found = pool.map(lambda file: _row_groups(file, columns), tables)
        for file in files:
            if _is_parquet(file):
                yield from next(found)
            else:
                yield file


def _is_parquet(file: Source) -> bool:
    return file.path.lower().endswith(PARQUET)


def _row_groups(file: Source, columns: Columns) -> list[Source]:
    what = str(file.place)
    try:
        with pyarrow.parquet.ParquetFile(file.path, filesystem=file.place.files) as opened:
            picture_column(opened.schema_arrow, columns, what)
            about = opened.metadata
            counts = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(what, error) from error
    firsts = accumulate(counts, initial=0)
    groups = enumerate(zip(firsts, counts, strict=False))
    return [
        replace(file, row_group=n, first=first, pictures=count)
        for n, (first, count) in groups
        if count
    ]


def picture_column(schema: Any, columns: Columns, what: str) -> str:
    """The column of a Parquet file's pictures. Raises OptionError where none can be meant."""
    if columns.id is not None and columns.id not in schema.names:
        raise _no_column(what, "--id-column", columns.id, schema.names)
    if columns.image is not None:
        if columns.image not in schema.names:
            raise _no_column(what, "--image-column", columns.image, schema.names)
        if not _holds_bytes(schema.field(columns.image).type):
            raise OptionError(
                f"The column {columns.image} of {what} is of the type "
                f"{schema.field(columns.image).type}: give one of the bytes of picture files."
            )
        return columns.image
    found = [str(field.name) for field in schema if _holds_bytes(field.type)]
    if not found:
        raise OptionError(
            f"{what} has no column of the bytes of picture files, only "
            f"{', '.join(schema.names)}: give another INPUT."
        )
    if len(found) > 1:
        raise OptionError(
            f"Several columns of {what} hold bytes: say which are the pictures by --image-column, "
            f"of {', '.join(found)}."
        )
    return found[0]


def _holds_bytes(kind: Any) -> bool:
    if pyarrow.types.is_struct(kind):  # as the library `datasets` writes pictures
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _no_column(what: str, flag: str, name: str, names: list[str]) -> OptionError:
    return OptionError(f"{what} has no column {name!r} for {flag}: choose of {', '.join(names)}.")


def _unreadable(what: str, error: Exception) -> ImageError:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    return ImageError(f"{what} cannot be read ({reason}): check the path and its access.")
