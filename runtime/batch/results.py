"""The results of a batch: one Parquet row a picture, with the fields of its `Result`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pyarrow
import pyarrow.parquet

from clipsam.runtime.batch.places import Place
from clipsam.runtime.batch.plan import Shard
from clipsam.runtime.core.errors import ClipSAMError, DamagedError, ImageError, OutputError
from clipsam.runtime.core.result import DAMAGED, NOT_JUDGED, UNREADABLE, Result
from clipsam.runtime.folder import Counts
from clipsam.runtime.results.tables import arrow_schema, flat

_OF_A_RESULT = [f.name for f in fields(Result) if f.name not in ("score_map", "mask")]
SCHEMA = arrow_schema(
    ["image", "id", "sha256", *_OF_A_RESULT, "error"],
    whole=("height", "width", "prompts", "dropped", "device_id", "min_area", "crops"),
    real=("score", "limit", "map_limit", "distance"),
    truth=("refined", "late"),
)
_READERS = 16
Row = dict[str, Any]


def row_of(about: Mapping[str, Any], outcome: Result | ClipSAMError) -> Row:
    """A picture's row; `about` are its `image`, `id` and, if it could be read, `sha256`.

    What cannot be inspected is `not_judged`, with the sentence in `error`; without `reasons` where
    it was not the picture's fault.
    """
    if isinstance(outcome, Result):
        return flat({**about, **outcome.to_dict()})
    reasons = []
    if isinstance(outcome, ImageError):
        reasons = [DAMAGED if isinstance(outcome, DamagedError) else UNREADABLE]
    return flat({**about, "verdict": NOT_JUDGED, "reasons": reasons, "error": str(outcome)})


def write_shard(output: Place, shard: Shard, rows: Iterable[Row]) -> Counts:
    """Write the results of a shard whole or not at all; returns what they come to.

    Raises OutputError.
    """
    table = pyarrow.Table.from_pylist(list(rows), SCHEMA)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    (output / shard.file).write(sink.getvalue().to_pybytes())
    return _counts(table)


def read_counts(
    output: Place, shards: Iterable[Shard], flawless: bool = False
) -> dict[Shard, Counts]:
    """What the shards come to whose results are there, whole and of as many pictures; if
    `flawless`, only those without an error. Raises OutputError."""
    try:
        there = set(output.names())
    except OSError as error:
        raise OutputError(
            f"{output} cannot be read ({error.strerror or error}): choose another OUTPUT."
        ) from error

    def counted(shard: Shard) -> Counts | None:
        place = output / shard.file
        try:
            with pyarrow.parquet.ParquetFile(place.path, filesystem=place.files) as file:
                if file.metadata.num_rows != shard.pictures:
                    return None
                table = file.read(["verdict", "reasons", "error"])
        except (OSError, pyarrow.ArrowException):  # cut off by a power cut: written again
            return None
        errors = table.num_rows - table.column("error").null_count
        return None if flawless and errors else _counts(table)

    wanted = [shard for shard in shards if shard.file in there]
    with ThreadPoolExecutor(_READERS) as pool:
        found = zip(wanted, pool.map(counted, wanted), strict=True)
        return {shard: counts for shard, counts in found if counts is not None}


def _counts(table: Any) -> Counts:
    counts = Counts()
    for row in table.select(["verdict", "reasons", "error"]).to_pylist():
        failed = row["error"] is not None and row["reasons"] == "[]"
        counts.add("failed" if failed else row["verdict"])
    return counts
