"""What changed in a store since somebody last looked, in the order in which it did."""

from __future__ import annotations

from dataclasses import dataclass

from clipsam.runtime.station.part import JUDGED, SELECT, Part, from_row
from clipsam.runtime.station.store import Store

_SINCE = f"""
SELECT changed, 0 AS kind, id FROM parts WHERE changed > :after AND state = '{JUDGED}'
UNION ALL SELECT changed, 1, id FROM events WHERE changed > :after
"""


@dataclass(frozen=True)
class Changes:
    """Judged parts and events that are new or were altered.

    Attributes:
      parts: as they are now, each once.
      events: (id, at, kind, message), as in `Store.events`.
      through: the tick of the last of them: where to go on.
    """

    parts: tuple[Part, ...]
    events: tuple[tuple[int, str, str, str], ...]
    through: int


def changes(store: Store, after: int, most: int) -> Changes:
    """The first `most` changes later than the tick `after`, none missing in between.

    What was removed since is not told of. Raises StoreError, OutputError.
    """
    with store.transaction() as connection:
        found = connection.execute(
            f"{_SINCE} ORDER BY changed LIMIT :most", {"after": after, "most": most}
        ).fetchall()
        ids = [[i for _, kind, i in found if kind == wanted] for wanted in (0, 1)]
        parts = connection.execute(f"{SELECT} WHERE id IN ({_marks(ids[0])})", ids[0]).fetchall()
        events = connection.execute(
            f"SELECT id, at, kind, message FROM events WHERE id IN ({_marks(ids[1])})", ids[1]
        ).fetchall()
    return Changes(
        tuple(from_row(row) for row in parts), tuple(events), found[-1][0] if found else after
    )


def count_changes(store: Store, after: int) -> int:
    """How many changes there are later than the tick `after`."""
    with store.transaction() as connection:
        (count,) = connection.execute(
            f"SELECT count(*) FROM ({_SINCE})", {"after": after}
        ).fetchone()
    return int(count)


def _marks(values: list[int]) -> str:
    return ", ".join("?" * len(values))
