"""What a batch has to do, written down before it is done: which shard each picture belongs to.

    OUTPUT/part-00000-0000.parquet   the results of a shard, whole or not there
    OUTPUT/_batch/settings.json      what decides an answer
    OUTPUT/_batch/plan-00000.parquet the pictures of up to 1000 shards, a row group each

A plan is never changed. A picture is in one shard, and whoever inspects that shard, once or again,
writes the same rows to the same file: so a picture has one row, however often a run is killed and
whatever a machine still does that was given up for dead. New pictures get further plans.

Readers of Parquet folders leave out what begins with an underscore.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow
import pyarrow.parquet

from clipsam.runtime.batch.pictures import Source
from clipsam.runtime.batch.places import Place
from clipsam.runtime.core.errors import ImageError, OutputError
from clipsam.runtime.results.tables import arrow_schema

OWN = "_batch"
SETTINGS = "settings.json"
SHARDS_OF_A_PLAN = 1000
_PLAN = re.compile(r"plan-(\d{5})\.parquet")
_FIELDS = [field.name for field in fields(Source)]
_SCHEMA = arrow_schema(_FIELDS, whole=("size", "mtime_ns", "row_group", "first", "pictures"))


@dataclass(frozen=True, order=True)
class Shard:
    """Pictures whose results are one file."""

    plan: int
    number: int
    pictures: int

    @property
    def file(self) -> str:
        """The name of its results."""
        return f"part-{self.plan:05d}-{self.number:04d}.parquet"


class Plan:
    """All plans of an OUTPUT. Raises OutputError for one that cannot be read."""

    def __init__(self, output: Place) -> None:
        self._folder = output / OWN
        self.shards: list[Shard] = []
        self._known: dict[tuple[str, int], tuple[str, str, int, int]] = {}
        try:
            for name in self._folder.names():
                if found := _PLAN.fullmatch(name):
                    self._learn(int(found[1]))
        except (OSError, pyarrow.ArrowException) as error:
            raise OutputError(
                f"The plan of {output} cannot be read ({error}): choose another OUTPUT."
            ) from error

    def add(self, sources: Iterable[Source], size: int) -> int:
        """Plan what is not yet planned, in shards of `size` pictures; returns how many files have
        changed since they were planned, and stay planned as they were.

        Raises ImageError where a known name is another file's now, OutputError.
        """
        changed: set[str] = set()
        fresh: list[Source] = []
        planned = {name for name, _ in self._known}
        for source in sources:
            known = self._known.get((source.name, source.row_group))
            if known is not None and known[:2] != (source.address, source.path):
                raise ImageError(
                    f"{source.place} and {Place(*known[:2])}, which was planned before, would both "
                    f"be called {source.name} in the results: choose another OUTPUT."
                )
            if known is None and source.name not in planned:
                fresh.append(source)
            elif known is None or known[2:] != (source.size, source.mtime_ns):
                changed.add(source.name)  # without `known`: a table that had other row groups
        groups = list(_shared_out(fresh, size))
        for first in range(0, len(groups), SHARDS_OF_A_PLAN):
            number = 1 + max((shard.plan for shard in self.shards), default=-1)
            self._write(number, groups[first : first + SHARDS_OF_A_PLAN])
        return len(changed)

    def _write(self, number: int, groups: Sequence[Sequence[Source]]) -> None:
        sink = pyarrow.BufferOutputStream()
        with pyarrow.parquet.ParquetWriter(sink, _SCHEMA) as writer:
            for group in groups:
                rows = [asdict(source) for source in group]
                writer.write_table(
                    pyarrow.Table.from_pylist(rows, _SCHEMA), row_group_size=len(rows)
                )
        (self._folder / _name(number)).write(sink.getvalue().to_pybytes())
        for index, group in enumerate(groups):
            self.shards.append(Shard(number, index, sum(source.pictures for source in group)))

    def _learn(self, number: int) -> None:
        with _opened(self._folder, number) as file:
            for index in range(file.num_row_groups):
                rows = file.read_row_group(index).to_pylist()
                self.shards.append(Shard(number, index, sum(row["pictures"] for row in rows)))
                for row in rows:
                    self._known[row["name"], row["row_group"]] = (
                        row["address"], row["path"], row["size"], row["mtime_ns"]
                    )  # fmt: skip


def sources_of(output: Place, shard: Shard) -> list[Source]:
    """The pictures of a shard. Raises OSError, and ArrowException for a damaged plan."""
    with _opened(output / OWN, shard.plan) as file:
        return [Source(**row) for row in file.read_row_group(shard.number).to_pylist()]


def keep_settings(output: Place, settings: Mapping[str, Any]) -> None:
    """Write down what decides an answer, or compare with what is there.

    Raises OutputError where the folder holds results of other settings, or what no batch wrote.
    """
    place = output / OWN / SETTINGS
    try:
        there = output.names()
        known = place.read() if OWN in there else None
    except FileNotFoundError:
        known = None
    except OSError as error:
        raise OutputError(
            f"{output} cannot be read ({error.strerror or error}): choose another OUTPUT."
        ) from error
    if known is None:
        if foreign := [name for name in there if name != OWN]:
            raise OutputError(
                f"{output} holds {foreign[0]}, which no batch wrote: give a new folder as OUTPUT."
            )
        place.write(json.dumps(settings, indent=1).encode())
        return
    try:
        before = dict(json.loads(known))
    except (ValueError, TypeError, RecursionError) as error:
        raise OutputError(f"{place} is damaged: choose another OUTPUT.") from error
    for name in sorted({*before, *settings}):
        if before.get(name) != settings.get(name):
            raise OutputError(
                f"{output} holds results of another {name} ({before.get(name)}, now "
                f"{settings.get(name)}): go on with that, or choose another OUTPUT."
            )


def _shared_out(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    group: list[Source] = []
    held = 0
    for source in sources:
        if group and held + source.pictures > size:
            yield group
            group, held = [], 0
        group.append(source)
        held += source.pictures
    if group:
        yield group


def _opened(folder: Place, number: int) -> Any:
    place = folder / _name(number)
    return pyarrow.parquet.ParquetFile(place.path, filesystem=place.files)


def _name(number: int) -> str:
    return f"plan-{number:05d}.parquet"
