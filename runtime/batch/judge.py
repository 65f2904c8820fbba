"""The pictures of a shard, read ahead and inspected."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import pyarrow
import pyarrow.parquet

from clipsam.runtime.batch.pictures import Columns, Source, picture_column
from clipsam.runtime.batch.results import Row, row_of
from clipsam.runtime.core.errors import ClipSAMError, ImageError
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import decode_image
from clipsam.runtime.pipeline import ClipSAM

_AHEAD = 8  # files that are read meanwhile: an object store takes its time for each
_ROWS = 8  # of a Parquet file that are decompressed at a time


@dataclass(frozen=True)
class Picture:
    """A picture file's content, or why there is none."""

    name: str
    content: bytes | ImageError
    id: str | None = None


def judge(
    model: ClipSAM, pictures: Iterable[Picture], category: str | None, norm: str | None
) -> Iterator[Row]:
    """A row for every picture, in order.

    Raises SessionError where an engine fails on any picture, not on one.
    """
    begun: deque[tuple[Row, ClipSAMError | None]] = deque()

    def sound() -> Iterator[Image]:
        for picture in pictures:
            about: Row = {"image": picture.name, "id": picture.id}
            try:
                if isinstance(picture.content, ImageError):
                    raise picture.content
                about["sha256"] = hashlib.sha256(picture.content).hexdigest()
                image = decode_image(picture.content, picture.name)
            except ImageError as error:
                begun.append((about, error))
                continue
            begun.append((about, None))
            yield image

    def unsound() -> Iterator[Row]:
        while begun and (error := begun[0][1]) is not None:
            yield row_of(begun.popleft()[0], error)

    with closing(model.inspect_many(sound(), category, norm=norm)) as line:
        for part in line:
            yield from unsound()
            yield row_of(begun.popleft()[0], part.outcome)
            del part  # or its image would stay while the next is waited for
    yield from unsound()


def read_pictures(sources: Iterable[Source], columns: Columns) -> Iterator[Picture]:
    """Every picture of these sources, in order; what cannot be read is an ImageError."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[tuple[Source, Future[Picture] | None]] = deque()
        for source in sources:
            file = source.row_group < 0
            waiting.append((source, pool.submit(_read_file, source) if file else None))
            if len(waiting) > _AHEAD:
                yield from _taken(*waiting.popleft(), columns)
        while waiting:
            yield from _taken(*waiting.popleft(), columns)


def _taken(source: Source, read: Future[Picture] | None, columns: Columns) -> Iterator[Picture]:
    if read is not None:
        yield read.result()
    else:
        yield from _read_rows(source, columns)


def _read_file(source: Source) -> Picture:
    try:
        return Picture(source.name, source.place.picture(source.name))
    except ImageError as error:
        return Picture(source.name, error)


def _read_rows(source: Source, columns: Columns) -> Iterator[Picture]:
    """The pictures of a row group; those behind a damaged place cannot be read."""
    done = 0

    def name() -> str:
        return f"{source.name}#{source.first + done}"

    problem = "the file has fewer rows than when it was planned"
    try:
        for content, known in _cells(source, columns):
            if done == source.pictures:
                return
            missing = ImageError(f"{name()} holds no picture: take it again.")
            yield Picture(name(), missing if content is None else content, known)
            done += 1
    except (OSError, IndexError, pyarrow.ArrowException, ClipSAMError) as error:
        problem = " ".join(str(error).split()).rstrip(".")
    while done < source.pictures:
        yield Picture(name(), ImageError(f"{name()} cannot be read ({problem}): check the file."))
        done += 1


def _cells(source: Source, columns: Columns) -> Iterator[tuple[bytes | None, str | None]]:
    """The pictures' bytes and what names them, row by row."""
    files = source.place.files
    with pyarrow.parquet.ParquetFile(source.path, filesystem=files, pre_buffer=False) as file:
        column = picture_column(file.schema_arrow, columns, str(source.place))
        wanted = [column, *([] if columns.id is None else [columns.id])]
        for batch in file.iter_batches(_ROWS, [source.row_group], wanted):
            for row in batch.to_pylist():
                content = row[column]
                known = None if columns.id is None else row[columns.id]
                yield (
                    content["bytes"] if isinstance(content, dict) else content,
                    None if known is None else str(known),
                )
