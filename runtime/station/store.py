"""The store of a station: a row for every part that was taken, in one SQLite file.

WAL and `synchronous=FULL`: a row that was written survives a power cut, and readers never wait for
the writer. One station at a time has the store (`Store.claim`); any number of other processes may
read it and label its parts meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from clipsam.runtime.core.errors import OptionError, OutputError, StoreError
from clipsam.runtime.core.lock import claim
from clipsam.runtime.station.part import JUDGED, LABELS, SELECT, TAKEN, Part, from_row, to_row
from clipsam.runtime.station.schema import check_version, migrate, now
from clipsam.runtime.station.sqlite_errors import sqlite_errors

_PATIENCE = 30.0  # seconds to wait for another process that is writing
_PAGE = 500  # rows read at a time, so that a long export holds no transaction open


class Store:
    """An opened store; a context manager. Threads may share one.

    Attributes:
      path: the SQLite file, absolute.
    """

    def __init__(self, path: Path | str, *, create: bool = False, read_only: bool = False) -> None:
        """Open `path`; a missing one is made only with `create`. Raises StoreError, OutputError.

        An older schema is brought up to date, unless `read_only`.
        """
        self.path = Path(path).absolute()
        if not create and not self.path.is_file():
            raise StoreError(
                f"{path} is no store: give the file that `clipsam watch` or `serve` wrote."
            )
        if create and not self.path.parent.is_dir():
            raise StoreError(f"{self.path.parent} is no folder: make it, or give another --store.")
        self._lock, self._depth = threading.RLock(), 0
        self._claim: int | None = None
        mode = "ro" if read_only else "rwc" if create else "rw"
        with sqlite_errors(self.path):
            self._connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}",
                uri=True,
                timeout=_PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
        try:
            with sqlite_errors(self.path):
                if read_only:
                    check_version(self._connection, self.path)
                else:
                    migrate(self._connection, self.path)
                    self._connection.execute("PRAGMA journal_mode = WAL")
                    self._connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self._connection.close()
            raise

    @property
    def pictures(self) -> Path:
        """The folder of the pictures that are kept."""
        return self.path.with_name(f"{self.path.stem}.pictures")

    def claim(self) -> None:
        """Make this process the store's one station. Raises StoreError where there is another."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            self._claim = claim(lock)
        except OSError as error:  # no lock either, on some network's disks
            raise OutputError(
                f"{lock} could not be written and locked ({error.strerror}): allow it, free some "
                "space, or put the store on a local disk."
            ) from error
        if self._claim is None:
            raise StoreError(
                f"{self.path} is in use by another `clipsam watch` or `serve`: stop that one, or "
                "give this one a --store of its own."
            )

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection, None, None]:
        """What is written within is on disk together after it, or not at all. May be nested.

        Raises DiskFullError, OutputError and StoreError in place of SQLite's own.
        """
        with self._lock, sqlite_errors(self.path):
            if self._depth:  # part of the outer one
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has rolled back already
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def take(self, name: str, category: str, **values: Any) -> int:
        """Add a part that was taken in, `values` being other fields of `Part`; returns its id.

        Its first attempt counts as begun.
        """
        row = {"taken_at": now(), "attempts": 1, **values, "name": name, "category": category}
        return self._insert({**row, "state": TAKEN})

    def add_judged(self, name: str, category: str, **values: Any) -> int:
        """Add a part that was judged while nothing could be written; returns its id."""
        row = {"taken_at": now(), "judged_at": now(), "attempts": 1, **values}
        return self._insert({**row, "name": name, "category": category, "state": JUDGED})

    def begin(self, part: int) -> int:
        """Count one more attempt at a taken part, on disk before it is tried; returns how many."""
        with self.transaction() as connection:
            connection.execute("UPDATE parts SET attempts = attempts + 1 WHERE id = ?", (part,))
            (attempts,) = connection.execute(
                "SELECT attempts FROM parts WHERE id = ?", (part,)
            ).fetchone()
        return int(attempts)

    def judge(self, part: int, **values: Any) -> None:
        """Write the judgement of a taken part: `verdict`, and other fields of `Part`.

        Raises StoreError for a part that is judged already: nothing is judged twice.
        """
        row = to_row({"judged_at": now(), **values})
        changes = ", ".join(f'"{name}" = :{name}' for name in row)
        with self.transaction() as connection:
            done = connection.execute(
                f"UPDATE parts SET state = '{JUDGED}', {changes} "
                f"WHERE id = :id AND state = '{TAKEN}'",
                {**row, "id": part},
            )
            if done.rowcount != 1:
                raise StoreError(f"Part {part} of {self.path} is judged already, or not there.")

    def file(self, part: int, picture: str | None, score_map: str | None = None) -> None:
        """Note where the picture of a judged part went (None: it was not kept).

        This alone is not forced to the disk: a station that starts again sees it from the files.
        """
        with self._lock:
            self._connection.execute("PRAGMA synchronous = NORMAL")
            try:
                with self.transaction() as connection:
                    connection.execute(
                        "UPDATE parts SET filed = 1, picture = ?, map = ? WHERE id = ?",
                        (picture, score_map, part),
                    )
            finally:
                self._connection.execute("PRAGMA synchronous = FULL")

    def give_back(self, parts: Sequence[int]) -> None:
        """Take back an attempt of parts that were not to blame for what went wrong."""
        with self.transaction() as connection:
            connection.executemany(
                f"UPDATE parts SET attempts = attempts - 1 WHERE id = ? AND state = '{TAKEN}'",
                [(part,) for part in parts],
            )

    def label(self, part: int, label: str | None, by: str | None = None) -> None:
        """Keep what a person said: "good", "defective", or None to take it back."""
        if label is not None and label not in LABELS:
            raise OptionError(f"label={label!r} must be one of {', '.join(LABELS)}, or None.")
        at = None if label is None else now()
        with self.transaction() as connection:
            connection.execute(
                "UPDATE parts SET label = ?, labelled_at = ?, labelled_by = ? WHERE id = ?",
                (label, at, by if label is not None else None, part),
            )

    def event(self, kind: str, message: str) -> None:
        """Note what happened to the station, such as an alarm; `kind` is one word."""
        with self.transaction() as connection:
            connection.execute(
                "INSERT INTO events (at, kind, message) VALUES (?, ?, ?)", (now(), kind, message)
            )

    def events(self) -> list[tuple[str, str, str]]:
        """(at, kind, message) of all that happened, oldest first."""
        return self._read("SELECT at, kind, message FROM events ORDER BY id")

    def about(self) -> dict[str, str]:
        """`store_id` (unlike that of any other store) and `created_at`."""
        return dict(self._read("SELECT key, value FROM about"))

    def get(self, part: int) -> Part | None:
        """The part of an id, or None."""
        found = self._read(f"{SELECT} WHERE id = ?", (part,))
        return from_row(found[0]) if found else None

    def holds_file(self, name: str, size: int, mtime_ns: int) -> bool:
        """Whether a file of this name, size and time of writing was taken and judged."""
        query = f"SELECT 1 FROM parts WHERE name = ? AND state = '{JUDGED}' AND file_size = ? "
        return bool(self._read(query + "AND file_mtime_ns = ? LIMIT 1", (name, size, mtime_ns)))

    def same_picture(self, sha256: str, name: str, mtime_ns: int | None) -> Part | None:
        """The part whose picture has these bytes, and this name or time of writing; or None."""
        query = f"{SELECT} WHERE sha256 = ? AND (name = ? OR file_mtime_ns = ?) ORDER BY id LIMIT 1"
        found = self._read(query, (sha256, name, mtime_ns))
        return from_row(found[0]) if found else None

    def find(self, text: str) -> Part:
        """The part that a person means by an id, a serial number or a name.

        Raises OptionError where there is none, or more than one of that serial number or name.
        """
        for column in ("id", "serial", "name"):
            if column == "id" and not (text.isdecimal() and len(text) < 19):
                continue
            found = self._read(f"{SELECT} WHERE {column} = ? ORDER BY id DESC LIMIT 3", (text,))
            if len(found) == 1:
                return from_row(found[0])
            if found:
                ids = ", ".join(str(row[0]) for row in found)
                raise OptionError(
                    f"{self.path} has more than one part with {column} {text!r}: give the id of "
                    f"one (the latest are {ids})."
                )
        raise OptionError(
            f"{self.path} has no part with id, serial or name {text!r}: `clipsam store export` "
            "lists all."
        )

    def parts(self, where: str = "1", values: Sequence[object] = ()) -> Iterator[Part]:
        """Every part for which the SQL condition holds, by id; reads a page at a time."""
        last = 0
        query = f"{SELECT} WHERE id > ? AND ({where}) ORDER BY id LIMIT {_PAGE}"
        while page := self._read(query, (last, *values)):
            for row in page:
                yield from_row(row)
            last = page[-1][0]

    def latest(self, most: int, before: int | None = None) -> list[Part]:
        """Judged parts, newest first: at most `most`, of ids below `before`."""
        query = f"{SELECT} WHERE state = '{JUDGED}' AND id < ? ORDER BY id DESC LIMIT ?"
        return [from_row(row) for row in self._read(query, (before or 1 << 62, most))]

    def counts(self) -> dict[str, int]:
        """verdict -> parts; those that are taken and not judged as "taken"."""
        return dict(
            self._read(f"SELECT coalesce(verdict, '{TAKEN}'), count(*) FROM parts GROUP BY 1")
        )

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the file; nothing for a sound one."""
        found = [line for (line,) in self._read("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Close the file, and let another station have it."""
        with self._lock:
            self._connection.close()
            if self._claim is not None:
                os.close(self._claim)
                self._claim = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _insert(self, values: Mapping[str, Any]) -> int:
        row = to_row(values)
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join(f":{name}" for name in row)
        with self.transaction() as connection:
            done = connection.execute(f"INSERT INTO parts ({names}) VALUES ({marks})", row)
        assert done.lastrowid is not None
        return done.lastrowid

    def _read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock, sqlite_errors(self.path):
            return self._connection.execute(query, values).fetchall()
