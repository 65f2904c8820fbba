"""The rows of a store as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TextIO

from clipsam.runtime.core.errors import MissingBackendError, OptionError
from clipsam.runtime.core.files import write_with
from clipsam.runtime.results.tables import arrow_schema, flat
from clipsam.runtime.station.part import COLUMNS, Part

FORMATS = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet"}
_BATCH = 5000  # rows of a row group


def write_jsonl(parts: Iterable[Part], file: TextIO) -> int:
    """One JSON object a line; returns how many."""
    count = 0
    for part in parts:
        file.write(json.dumps(part.to_dict()) + "\n")
        count += 1
    return count


def write_csv(parts: Iterable[Part], file: TextIO) -> int:
    """A line of names, then one a part, fields with a structure as JSON; returns how many."""
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    count = 0
    for part in parts:
        writer.writerow(flat(part.to_dict()))
        count += 1
    return count


def export(parts: Iterable[Part], path: Path, kind: str | None = None) -> int:
    """Write `path` whole or not at all, in the format of its ending or `kind`; returns how many.

    Raises OptionError, OutputError, MissingBackendError where Parquet needs pyarrow.
    """
    if kind is None:
        kind = next((k for k, ending in FORMATS.items() if path.suffix.lower() == ending), None)
    if kind not in FORMATS:
        raise OptionError(
            f"{path} does not say its format: end it in {', '.join(FORMATS.values())}, or give "
            "--format."
        )
    if kind == "parquet":
        write = _parquet_writer()
        counts: list[int] = []
        write_with(path, lambda temporary: counts.append(write(parts, temporary)))
        return counts[0]
    text = write_csv if kind == "csv" else write_jsonl
    written: list[int] = []

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            written.append(text(parts, file))

    write_with(path, fill)
    return written[0]


def _parquet_writer() -> Callable[[Iterable[Part], Path], int]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingBackendError(
            "Parquet needs pyarrow: pip install pyarrow, or export .csv or .jsonl."
        ) from error
    schema = arrow_schema(
        COLUMNS,
        whole=("id", "attempts", "width", "height", "file_size", "file_mtime_ns"),
        real=("score", "limit", "map_limit"),
        truth=("refined", "late", "filed"),
    )

    def write(parts: Iterable[Part], path: Path) -> int:
        rows, count = iter(parts), 0
        with closing(pyarrow.parquet.ParquetWriter(path, schema)) as writer:
            while batch := [flat(part.to_dict()) for part in islice(rows, _BATCH)]:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                count += len(batch)
        return count

    return write
