"""The tables of a store, and how an older store becomes one of this version.

A store is one SQLite file. `PRAGMA application_id` says that it is ours, `PRAGMA user_version` how
many of `MIGRATIONS` it has been through. A migration that was released is never edited. What is new
of a part goes to a plant's database as well: `plant/schema.py`.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from clipsam.runtime.core.errors import StoreError

APPLICATION_ID = 0x4353414D  # "CSAM"

_FIRST = """
CREATE TABLE parts (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT NOT NULL,
    serial        TEXT,
    sha256        TEXT,
    taken_at      TEXT NOT NULL,
    state         TEXT NOT NULL DEFAULT 'taken' CHECK (state IN ('taken', 'judged')),
    attempts      INTEGER NOT NULL DEFAULT 0,
    judged_at     TEXT,
    verdict       TEXT CHECK (verdict IN ('good', 'anomalous', 'not_judged')),
    score         REAL,
    "limit"       REAL,
    map_limit     REAL,
    reasons       TEXT NOT NULL DEFAULT '[]',
    message       TEXT,
    category      TEXT NOT NULL,
    bundle        TEXT,
    calibration   TEXT,
    version       TEXT,
    provider      TEXT,
    precisions    TEXT NOT NULL DEFAULT '{}',
    timings       TEXT NOT NULL DEFAULT '{}',
    refined       INTEGER,
    late          INTEGER,
    width         INTEGER,
    height        INTEGER,
    roi           TEXT NOT NULL DEFAULT 'null',
    regions       TEXT NOT NULL DEFAULT '[]',
    label         TEXT CHECK (label IN ('good', 'defective')),
    labelled_at   TEXT,
    labelled_by   TEXT,
    picture       TEXT,
    map           TEXT,
    filed         INTEGER NOT NULL DEFAULT 0,
    file_size     INTEGER,
    file_mtime_ns INTEGER,
    CHECK ((state = 'judged') = (verdict IS NOT NULL))
);
CREATE INDEX parts_taken_at ON parts (taken_at);
CREATE INDEX parts_name ON parts (name);
CREATE INDEX parts_sha256 ON parts (sha256) WHERE sha256 IS NOT NULL;
CREATE INDEX parts_serial ON parts (serial) WHERE serial IS NOT NULL;
CREATE INDEX parts_label ON parts (label) WHERE label IS NOT NULL;
CREATE INDEX parts_open ON parts (id) WHERE filed = 0;
CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      TEXT NOT NULL,
    kind    TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
# Every change of a row takes the next tick of the store's clock, so that `clipsam store push` finds
# what changed since it last looked. Ticks are microseconds since 1970 as long as the system's clock
# goes on: then a store that was restored from an older copy does not give a tick twice.
_TICK = """
    UPDATE clock SET last =
        max(last + 1, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000);
    UPDATE {table} SET changed = (SELECT last FROM clock) WHERE id = NEW.id;
"""
_SECOND = (
    """
CREATE TABLE clock (last INTEGER NOT NULL);
ALTER TABLE parts ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
UPDATE parts SET changed = 2 * id;
UPDATE events SET changed = 2 * id + 1;
INSERT INTO clock SELECT max(
    (SELECT coalesce(max(changed), 0) FROM parts), (SELECT coalesce(max(changed), 0) FROM events)
);
CREATE INDEX parts_changed ON parts (changed);
CREATE INDEX events_changed ON events (changed);
"""
    f"""
CREATE TRIGGER parts_added AFTER INSERT ON parts BEGIN {_TICK.format(table="parts")} END;
CREATE TRIGGER parts_altered AFTER UPDATE ON parts WHEN NEW.changed = OLD.changed
    BEGIN {_TICK.format(table="parts")} END;
CREATE TRIGGER events_added AFTER INSERT ON events BEGIN {_TICK.format(table="events")} END;
"""
)
_IGNORED = "ALTER TABLE parts ADD COLUMN ignored TEXT NOT NULL DEFAULT '[]'"
MIGRATIONS = (_FIRST, _SECOND, _IGNORED)


def now() -> str:
    """UTC in ISO 8601, to the millisecond: as a string it sorts by time."""
    return iso(datetime.now(timezone.utc))


def iso(time: datetime) -> str:
    """A time that knows its zone, as the store writes it."""
    text = time.astimezone(timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the store at `path` to this version, all at once or not at all. Raises StoreError.

    `connection` must be in autocommit mode; SQLite's own errors pass through.
    """
    if _version(connection, path) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = _version(connection, path)  # another process may have been faster
        for script in MIGRATIONS[done:]:
            for statement in _statements(script):
                connection.execute(statement)
        if not done:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.executemany(
                "INSERT INTO about VALUES (?, ?)",
                [("store_id", secrets.token_hex(16)), ("created_at", now())],
            )
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise StoreError unless the store at `path` is of this version."""
    if (found := _version(connection, path)) != len(MIGRATIONS):
        raise StoreError(
            f"{path} has schema {found} and this version reads {len(MIGRATIONS)}: `clipsam store "
            "check` brings it up to date."
        )


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit first."""
    text = ""
    for piece in script.split(";"):
        text += piece + ";"
        if sqlite3.complete_statement(text):  # a trigger has semicolons of its own
            yield text
            text = ""


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """How many migrations the store has been through; 0 for an empty file."""
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    if mark != APPLICATION_ID and not (empty and mark == version == 0):
        raise StoreError(f"{path} is a database of something else: give another --store.")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} has schema {version}, written by a newer version of clipsam than this one, "
            f"which knows up to {len(MIGRATIONS)}: update clipsam."
        )
    return int(version)
