"""What keeps a store small and sound: retention, quota, and a check of everything."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from clipsam.runtime.core.result import GOOD
from clipsam.runtime.station.schema import iso
from clipsam.runtime.station.sources.files import state_of
from clipsam.runtime.station.store import Store

PRUNE_EVERY = 600.0  # seconds between two looks at retention and quota
_BATCH = 200  # parts removed at a time, so that nobody waits for long


@dataclass(frozen=True)
class Pruned:
    """What was removed."""

    parts: int = 0
    pictures: int = 0
    bytes: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(
            self.parts + other.parts,
            self.pictures + other.pictures,
            self.bytes + other.bytes,
        )


def prune(store: Store, retain: float | None = None, quota: int | None = None) -> Pruned:
    """Remove parts older than `retain` days, then pictures until `quota` bytes are kept.

    Labelled parts stay, pictures and all: a person's time is in them. For the quota good parts'
    pictures go first, the oldest first; their rows stay. Pictures that lie elsewhere, where a
    camera put them, are nobody's to remove. Cut off anywhere, it can be called again.
    """
    done = Pruned()
    if retain is not None:
        cutoff = iso(datetime.now(timezone.utc) - timedelta(days=retain))
        while (removed := _remove_old(store, cutoff)).parts:
            done += removed
    if quota is not None:
        excess = size_of(store.pictures) - quota
        while excess > 0:
            removed, parts = _remove_pictures(store, excess)
            if not parts:
                break
            done, excess = done + removed, excess - removed.bytes
    return done


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; a station may move some of them meanwhile."""
    return sum(state[0] for state in map(state_of, _files(folder)) if state is not None)


def check(store: Store) -> list[str]:
    """A sentence for all that is wrong with a store; nothing for a sound one.

    SQLite's own check, pictures that a row names and that are gone, and pictures without a row. A
    station may go on meanwhile: what it changed since is not taken for wrong.
    """
    problems = [f"SQLite: {line}" for line in store.integrity()]
    if problems:
        return problems
    named: set[Path] = set()
    there = sorted(_files(store.pictures))
    for part in store.parts("picture IS NOT NULL OR map IS NOT NULL"):
        for path in (part.picture_path(store.path), part.map_path(store.path)):
            if path is None:
                continue
            named.add(path)
            if state_of(path) is None and store.get(part.id) == part:
                problems.append(f"part {part.id}: {path} is gone.")
    for path in there:
        if path not in named and not path.name.startswith(".") and state_of(path) is not None:
            problems.append(f"{path} belongs to no part.")
    return problems


def _remove_old(store: Store, cutoff: str) -> Pruned:
    """Some of the parts taken before `cutoff`, all that a row holds of them, and old events."""
    with store.transaction() as connection:  # nobody labels a part while its pictures go
        batch = _some(connection, "filed = 1 AND label IS NULL AND taken_at < ?", "id", cutoff)
        done = Pruned(parts=len(batch))
        for _, *files in batch:
            done += _remove(store, files)
        connection.executemany("DELETE FROM parts WHERE id = ?", [row[:1] for row in batch])
        connection.execute("DELETE FROM events WHERE at < ?", (cutoff,))
    return done


def _remove_pictures(store: Store, excess: int) -> tuple[Pruned, int]:
    """Pictures of about `excess` bytes, or some of them, and of how many parts they were."""
    ours = f"{store.pictures.name}/"
    kept = "filed = 1 AND label IS NULL AND substr(picture, 1, ?) = ?"
    first = f"verdict = '{GOOD}' DESC, id"
    done, gone = Pruned(), []
    with store.transaction() as connection:  # as above
        for number, *files in _some(connection, kept, first, len(ours), ours):
            if done.bytes >= excess:
                break
            done += _remove(store, files)
            gone.append((number,))
        connection.executemany("UPDATE parts SET picture = NULL, map = NULL WHERE id = ?", gone)
    return done, len(gone)


def _some(
    connection: sqlite3.Connection, where: str, order: str, *values: object
) -> list[tuple[int, str, str]]:
    query = f"SELECT id, picture, map FROM parts WHERE {where} ORDER BY {order} LIMIT {_BATCH}"
    return connection.execute(query, values).fetchall()


def _remove(store: Store, files: list[str]) -> Pruned:
    """Delete the pictures of a part that lie in the store's own folder."""
    count = size = 0
    for name in files:
        if name is not None and name.startswith(f"{store.pictures.name}/"):
            path = store.path.parent / name
            with suppress(OSError):
                freed = path.stat().st_size
                path.unlink()
                count, size = count + 1, size + freed
                path.parent.rmdir()  # the day's folder, when it is empty
    return Pruned(pictures=count, bytes=size)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
