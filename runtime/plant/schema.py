"""The tables of a plant's database, and how older ones become those of this version.

They lie in a schema of their own, `clipsam`, and `clipsam.about` says how many of `MIGRATIONS` they
have been through. A migration that was released is never edited, and only adds columns with a
default and tables: boxes are not all brought up to date on one day, and those with an older clipsam
go on pushing.

A part is named by its store, its number and the time it was taken: where a store was restored from
an older copy, or copied to a second box, a number is given twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipsam.runtime.core.errors import StoreError

if TYPE_CHECKING:
    from clipsam.runtime.plant.database import Connection

_FIRST = """
CREATE TABLE clipsam.about (key text PRIMARY KEY, value text NOT NULL);
CREATE TABLE clipsam.boxes (
    store     text NOT NULL,
    box       text NOT NULL,
    through   bigint NOT NULL DEFAULT 0,
    pushed_at timestamptz,
    version   text,
    PRIMARY KEY (store, box)
);
CREATE TABLE clipsam.parts (
    store       text NOT NULL,
    id          bigint NOT NULL,
    taken_at    timestamptz NOT NULL,
    box         text NOT NULL,
    name        text NOT NULL,
    serial      text,
    sha256      text,
    judged_at   timestamptz,
    verdict     text NOT NULL,
    score       double precision,
    "limit"     double precision,
    map_limit   double precision,
    reasons     jsonb NOT NULL,
    message     text,
    category    text NOT NULL,
    bundle      text,
    calibration text,
    version     text,
    provider    text,
    precisions  jsonb NOT NULL,
    timings     jsonb NOT NULL,
    refined     boolean,
    late        boolean,
    width       bigint,
    height      bigint,
    roi         jsonb,
    regions     jsonb NOT NULL,
    ignored     jsonb NOT NULL,
    label       text,
    labelled_at timestamptz,
    labelled_by text,
    pushed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store, id, taken_at)
);
CREATE INDEX parts_taken_at ON clipsam.parts (taken_at);
CREATE INDEX parts_box ON clipsam.parts (box, taken_at);
CREATE INDEX parts_serial ON clipsam.parts (serial) WHERE serial IS NOT NULL;
CREATE TABLE clipsam.pictures (
    store    text NOT NULL,
    id       bigint NOT NULL,
    taken_at timestamptz NOT NULL,
    picture  bytea,
    map      bytea,
    PRIMARY KEY (store, id, taken_at),
    FOREIGN KEY (store, id, taken_at) REFERENCES clipsam.parts ON DELETE CASCADE
);
CREATE TABLE clipsam.events (
    store   text NOT NULL,
    id      bigint NOT NULL,
    at      timestamptz NOT NULL,
    box     text NOT NULL,
    kind    text NOT NULL,
    message text NOT NULL,
    PRIMARY KEY (store, id, at)
);
CREATE INDEX events_at ON clipsam.events (at);
"""
MIGRATIONS = (_FIRST,)
_LOCK = 0x4353414D  # one process at a time; "CSAM"


def migrate(connection: Connection) -> None:
    """Bring the database to this version, all at once or not at all; a newer one is left alone.

    `connection` is in autocommit mode; psycopg's errors pass through.
    """
    if _version(connection) >= len(MIGRATIONS):
        return
    row = connection.execute("SHOW server_encoding").fetchone()
    if row is None or row[0] != "UTF8":
        raise StoreError(
            f"The database has the encoding {row and row[0]}, which cannot hold every name: make "
            "one with `createdb --encoding UTF8 --template template0`."
        )
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        done = _version(connection)  # another process may have been faster
        if not _there(connection, "pg_namespace WHERE nspname = 'clipsam'"):
            connection.execute("CREATE SCHEMA clipsam")
        for script in MIGRATIONS[done:]:
            connection.execute(script.encode())
        connection.execute(
            "INSERT INTO clipsam.about VALUES ('schema', %s) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (str(len(MIGRATIONS)),),
        )


def check_version(connection: Connection, place: str) -> None:
    """Raise StoreError unless this version can read the database; `place` is for the sentence."""
    found = _version(connection)
    if found < len(MIGRATIONS):
        raise StoreError(
            f"{place} holds "
            + (f"tables of schema {found}, older than" if found else "no parts of")
            + " this version of clipsam: `clipsam store push` brings them up to date."
        )


def _version(connection: Connection) -> int:
    """How many migrations the database has been through; 0 without tables of ours."""
    if not _there(connection, "pg_tables WHERE (schemaname, tablename) = ('clipsam', 'about')"):
        return 0
    row = connection.execute("SELECT value FROM clipsam.about WHERE key = 'schema'").fetchone()
    return int(row[0]) if row else 0


def _there(connection: Connection, what: str) -> bool:
    # Not `to_regclass`, which within a transaction does not see what others have made since.
    row = connection.execute(f"SELECT EXISTS (SELECT FROM {what})".encode()).fetchone()
    return bool(row and row[0])
