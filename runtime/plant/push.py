"""`clipsam store push`: what changed in a station's store, into a plant's database.

How far it got is kept in the database and written together with the rows, so nothing is left out or
sent twice wherever it is cut off, and the box remembers nothing. A row that changes (a label) is
sent again and replaces the one that is there; what the box removes stays in the database.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from clipsam.runtime.core.errors import StoreError
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.images.thumbnail import read_judged, read_map, shrink, shrink_map
from clipsam.runtime.plant.database import connected, first_line
from clipsam.runtime.plant.schema import migrate
from clipsam.runtime.station.changes import Changes, changes, count_changes
from clipsam.runtime.station.part import COLUMNS, Part, printable
from clipsam.runtime.station.store import Store

if TYPE_CHECKING:
    from clipsam.runtime.plant.database import Connection

# Of a part, what means nothing away from its box.
BOX_ONLY = ("state", "attempts", "picture", "map", "filed", "file_size", "file_mtime_ns")
_SENT = tuple(name for name in COLUMNS if name not in BOX_ONLY)
_JSON = ("reasons", "precisions", "timings", "regions", "ignored", "roi")
_ISO = 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'  # as the store writes a time
_BATCH = 100  # changes of a transaction
_QUALITY = 75  # of a thumbnail, WebP

_log = get_logger("plant.push")
Progress = Callable[[int, int], None]  # changes sent, and how many there are
Key = tuple[int, str]  # number, time taken
Thumbnail = tuple[bytes | None, bytes | None]  # picture (WebP) and map (8-bit gray PNG)


@dataclass
class Pushed:
    """How much was sent: parts (new ones and altered), pictures, events; rows that were refused."""

    parts: int = 0
    pictures: int = 0
    events: int = 0
    refused: int = 0


def push(
    store: Store,
    address: str,
    box: str,
    *,
    side: int = 320,
    everything: bool = False,
    progress: Progress = lambda done, total: None,
) -> Pushed:
    """Send what changed since this store was last pushed from `box` to the database at `address`.

    `side`: the longest side of a picture's thumbnail in pixels; 0: rows alone. `everything` begins
    again from the first row, for a database that was restored from an older copy. A row that the
    database refuses is logged and left out. Raises UnreachableError, StoreError, OutputError.
    """
    key = (store.about()["store_id"], box)
    done = Pushed()
    with connected(address) as connection:
        migrate(connection)
        connection.execute(
            "INSERT INTO clipsam.boxes (store, box) VALUES (%s, %s) ON CONFLICT DO NOTHING", key
        )
        if everything:
            connection.execute(
                "UPDATE clipsam.boxes SET through = 0 WHERE (store, box) = (%s, %s)", key
            )
        count, total = 0, count_changes(store, _through(connection, key))
        while True:
            after = _through(connection, key)
            found = changes(store, after, _BATCH)
            thumbnails = _thumbnails(connection, key[0], store.path, found.parts, side)
            with connection.transaction():
                if not _go_on(connection, key, after, found.through):
                    continue  # another process that pushes this store was faster
                refused = _send(connection, key, found, thumbnails)
            if not found.parts and not found.events:
                return done
            done.parts += len(found.parts) - refused["parts"]
            done.events += len(found.events) - refused["events"]
            done.pictures += len(thumbnails)
            done.refused += refused.total()
            count += len(found.parts) + len(found.events)
            progress(count, max(count, total))


def _through(connection: Connection, key: tuple[str, str]) -> int:
    row = connection.execute(
        "SELECT through FROM clipsam.boxes WHERE (store, box) = (%s, %s)", key
    ).fetchone()
    if row is None:
        raise StoreError("The box was removed from clipsam.boxes meanwhile: push again.")
    return int(row[0])


def _go_on(connection: Connection, key: tuple[str, str], after: int, through: int) -> bool:
    """Note how far we are, unless somebody else got further; locks the row either way."""
    from clipsam.runtime import __version__

    done = connection.execute(
        "UPDATE clipsam.boxes SET through = %s, version = %s, pushed_at = now() "
        "WHERE (store, box, through) = (%s, %s, %s)",
        (through, __version__, *key, after),
    )
    return done.rowcount == 1


def _send(
    connection: Connection, key: tuple[str, str], found: Changes, thumbnails: dict[Key, Thumbnail]
) -> Counter[str]:
    """Write a batch within a transaction; returns how many rows of which table were refused."""
    from psycopg import DataError

    store, box = key
    parts = [{"store": store, "box": box, **_row(part)} for part in found.parts]
    events = [
        {"store": store, "id": i, "at": at, "box": box, "kind": _text(k), "message": _text(m)}
        for i, at, k, m in found.events
    ]
    pictures: dict[tuple[Any, Any], dict[str, Any]] = {
        number: {"store": store, "id": number[0], "taken_at": number[1], "picture": p, "map": m}
        for number, (p, m) in thumbnails.items()
    }
    refused: Counter[str] = Counter()
    try:
        with connection.transaction():
            _upsert(connection, "parts", parts)
            _upsert(connection, "pictures", list(pictures.values()))
            _upsert(connection, "events", events)
        return refused
    except DataError:  # find the row: the others must not wait for it
        pass
    for table, rows in (("parts", parts), ("events", events)):
        for row in rows:
            picture = pictures.get((row["id"], row["taken_at"])) if table == "parts" else None
            try:
                with connection.transaction():
                    _upsert(connection, table, [row])
                    _upsert(connection, "pictures", [picture] if picture else [])
            except DataError as error:
                refused[table] += 1
                _log.warning("%s %s was not sent: %s", table[:-1], row["id"], first_line(error))
    return refused


def _upsert(connection: Connection, table: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    names = ", ".join(f'"{name}"' for name in rows[0])
    marks = ", ".join(f"%({name})s" for name in rows[0])
    keys = f"store, id, {'at' if table == 'events' else 'taken_at'}"
    changes = [f'"{name}" = excluded."{name}"' for name in rows[0] if name not in keys.split(", ")]
    if table == "parts":
        changes.append("pushed_at = now()")
    query = (
        f"INSERT INTO clipsam.{table} ({names}) VALUES ({marks}) "
        f"ON CONFLICT ({keys}) DO UPDATE SET {', '.join(changes)}"
    )
    with connection.cursor() as cursor:
        cursor.executemany(query.encode(), rows)


def _row(part: Part) -> dict[str, Any]:
    """The fields that are sent, as PostgreSQL takes them."""
    values = part.to_dict()
    row: dict[str, Any] = {}
    for name in _SENT:
        value = values[name]
        if name in _JSON:
            value = None if value is None else json.dumps(_clean(value))
        row[name] = _text(value) if isinstance(value, str) else value
    return row


def _text(text: str) -> str:
    """PostgreSQL's text holds every character but NUL and halves of one."""
    return printable(text).replace("\0", "\\0")


def _clean(value: Any) -> Any:
    """A JSON value that `jsonb` takes."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_text(k): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list | tuple) else value


def _thumbnails(
    connection: Connection, store_id: str, store: Path, parts: Sequence[Part], side: int
) -> dict[Key, Thumbnail]:
    """Small pictures and maps of the parts that have some on the box and none in the database."""
    kept = [part for part in parts if side and (part.picture or part.map)]
    rows = connection.execute(
        f"SELECT id, to_char(taken_at, '{_ISO}') FROM clipsam.pictures "
        "WHERE store = %s AND id = ANY(%s)".encode(),
        (store_id, [part.id for part in kept]),
    ).fetchall()
    there = set(rows)
    found = {}
    for part in kept:
        if (part.id, part.taken_at) not in there:
            pair = _thumbnail(part, store, side)
            if any(pair):
                found[part.id, part.taken_at] = pair
    return found


def _thumbnail(part: Part, store: Path, side: int) -> Thumbnail:
    image = read_judged(part.picture_path(store), part.sha256)
    scores = read_map(part.map_path(store))
    picture = score_map = None
    if image is not None:
        bgr = shrink(image, side)[..., ::-1]
        picture = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()
    if scores is not None:
        grey = np.rint(shrink_map(scores, side) * 255).astype(np.uint8)
        score_map = cv2.imencode(".png", grey)[1].tobytes()
    return picture, score_map
