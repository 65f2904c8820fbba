"""The parts of a plant's database, of one box or all: what `clipsam store push` sent."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import ImageError, OptionError
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import decode_image
from clipsam.runtime.images.thumbnail import decode_map
from clipsam.runtime.plant.database import connected, shown
from clipsam.runtime.plant.schema import check_version
from clipsam.runtime.report.parts import Event, Part, Run, boxes_of, number, ordered, timings_of

if TYPE_CHECKING:
    from clipsam.runtime.plant.database import Connection

_EVENTS = 200
_RAN = ("bundle", "calibration", "provider", "version")


@contextmanager
def read_plant(address: str, last: int, box: str | None = None) -> Generator[Run, None, None]:
    """The `last` parts of the database at `address`, of one box or all, and the latest events.

    Pictures are read while it is open. Raises OptionError where there is nothing of it;
    UnreachableError, StoreError.
    """
    place = shown(address)
    with connected(address) as connection:
        check_version(connection, place)
        boxes = [row[0] for row in connection.execute(_BOXES).fetchall()]
        if not boxes:
            raise OptionError(f"{place} holds no part yet: `clipsam store push` sends them.")
        if box is not None and box not in boxes:
            raise OptionError(f"{place} has no box {box!r}: it has {', '.join(boxes)}.")
        several = box is None and len(boxes) > 1
        where = {"box": box, "last": last}
        cursor = connection.execute(_PARTS, where)
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        count = connection.execute(_COUNT, where).fetchone()
        events = connection.execute(_LATEST, {"box": box, "last": _EVENTS}).fetchall()
        yield Run(
            place.rpartition("/")[2] if box is None else box,
            ordered(_part(row, several, _fetcher(connection, row)) for row in rows),
            left_out=max(0, (count[0] if count else 0) - len(rows)),
            events=[
                Event(at.timestamp(), kind, f"{name}: {message}" if several else message)
                for at, name, kind, message in reversed(events)
            ],
        )


_OF_BOX = "(%(box)s::text IS NULL OR box = %(box)s)"
_BOXES = "SELECT DISTINCT box FROM clipsam.parts ORDER BY box"
_COUNT = f"SELECT count(*) FROM clipsam.parts WHERE {_OF_BOX}".encode()
_LATEST = (
    f"SELECT at, box, kind, message FROM clipsam.events WHERE {_OF_BOX} "
    "ORDER BY at DESC, id DESC LIMIT %(last)s"
).encode()
_PARTS = f"""
SELECT * FROM clipsam.parts WHERE {_OF_BOX} ORDER BY taken_at DESC, id DESC LIMIT %(last)s
""".encode()
_PICTURE = """
SELECT picture, map FROM clipsam.pictures
WHERE (store, id, taken_at) = (%(store)s, %(id)s, %(taken_at)s)
"""


def _fetcher(
    connection: Connection, row: dict[str, Any]
) -> Callable[[], tuple[Image | None, NDArray[np.float32] | None]]:
    key = {name: row[name] for name in ("store", "id", "taken_at")}

    def fetch() -> tuple[Image | None, NDArray[np.float32] | None]:
        found = connection.execute(_PICTURE, key).fetchone()
        picture, scores = found or (None, None)
        try:
            image = None if picture is None else decode_image(picture, f"part {key['id']}")
        except ImageError:
            image = None
        return image, None if scores is None else decode_map(scores)

    return fetch


def _part(row: dict[str, Any], several: bool, fetch: Callable[[], Any]) -> Part:
    ran = {key: row[key] for key in _RAN if row[key]}
    if row["precisions"]:
        ran["precisions"] = ", ".join(f"{graph} {p}" for graph, p in row["precisions"].items())
    taken: datetime = row["taken_at"]
    return Part(
        name=f"{row['box']}/{row['name']}" if several else row["name"],
        verdict=row["verdict"],
        score=number(row["score"]),
        limit=number(row["limit"]),
        map_limit=number(row["map_limit"]),
        taken=taken.timestamp(),
        category=row["category"],
        serial=row["serial"] or "",
        label=row["label"],
        reasons=tuple(row["reasons"]),
        message=row["message"] or "",
        timings=timings_of(row["timings"]),
        sam="encode" in row["timings"] or row["late"] is True,
        late=row["late"] is True,
        boxes=boxes_of(row["regions"], row["ignored"]),
        size=(row["width"], row["height"]) if row["width"] and row["height"] else None,
        ran=ran,
        fetch=fetch,
    )
