"""The parts of a station's store."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.core.result import VERDICTS
from clipsam.runtime.report.parts import (
    Event,
    Part,
    Run,
    boxes_of,
    ordered,
    text,
    timings_of,
)
from clipsam.runtime.station.part import JUDGED
from clipsam.runtime.station.part import Part as Row
from clipsam.runtime.station.store import Store

_EVENTS = 200


def read_store(path: Path, last: int) -> Run:
    """The judged parts of the store at `path`, at most the `last` ones, and its latest events.

    The station may go on writing. Raises OptionError where nothing was judged; StoreError.
    """
    with Store(path, read_only=True) as store:
        newest = f"SELECT id FROM parts WHERE state = '{JUDGED}' ORDER BY id DESC LIMIT ?"
        parts = [_part(row, path) for row in store.parts(f"id IN ({newest})", (last,))]
        judged = sum(n for verdict, n in store.counts().items() if verdict in VERDICTS)
        events = store.events()[-_EVENTS:]
    if not parts:
        raise OptionError(f"{path} holds no judged part yet: run `clipsam watch` first.")
    return Run(
        text(path.stem),
        ordered(parts),
        left_out=max(0, judged - len(parts)),
        events=[Event(_seconds(at), text(kind), text(message)) for at, kind, message in events],
    )


def _part(row: Row, store: Path) -> Part:
    ran = {
        "bundle": row.bundle,
        "calibration": row.calibration,
        "provider": row.provider,
        "precisions": ", ".join(f"{graph} {p}" for graph, p in row.precisions.items()),
        "version": row.version,
    }
    return Part(
        name=text(row.name),
        verdict=row.verdict or "",
        score=row.score,
        limit=row.limit,
        map_limit=row.map_limit,
        taken=_seconds(row.taken_at),
        category=text(row.category),
        serial=text(row.serial),
        label=row.label,
        reasons=tuple(text(reason) for reason in row.reasons),
        message=text(row.message),
        timings=timings_of(row.timings),
        sam="encode" in row.timings or row.late is True,
        late=row.late is True,
        boxes=boxes_of(list(row.regions), list(row.ignored)),
        size=(row.width, row.height) if row.width and row.height else None,
        ran={key: text(value) for key, value in ran.items() if value},
        picture=row.picture_path(store),
        sha256=row.sha256,
        score_map=row.map_path(store),
    )


def _seconds(iso: str) -> float | None:
    """Seconds since 1970 of a time as the store writes it, None for anything else."""
    try:
        return datetime.fromisoformat(iso.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
