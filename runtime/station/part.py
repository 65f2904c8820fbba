"""A part as the store knows it: one row of the table `parts`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

TAKEN, JUDGED = "taken", "judged"
LABELS = ("good", "defective")


@dataclass(frozen=True)
class Part:
    """One row. Times are UTC in ISO 8601 (`2026-01-31T12:34:56.789Z`).

    Attributes:
      id: counts from 1 and is never given twice within a store.
      name: the file, relative to the watched folder; for a camera its source and frame.
      serial: what the trigger or the name said the part is; None where nothing did.
      sha256: of the picture's file; of the pixels where no file could be written; None where
        neither could be read.
      taken_at: when the picture was taken in.
      state: "taken" or "judged".
      attempts: how often judging was begun; above the station's bound the part is not judged.
      judged_at: None until then, as is everything that the judgement says.
      verdict: "good", "anomalous" or "not_judged".
      score: the number that decides: anomalous exactly when `score > limit`.
      limit: see `score`.
      map_limit: where the score map passes the limit, for its colours.
      reasons: why a part was not judged: of `core.result.REASONS` and of `station.judgement`.
      message: the sentence for a person that goes with them.
      category: what the part was judged as.
      bundle: id of the bundle.
      calibration: id of the calibration; None without one.
      version: of clipsam.
      provider: what ran the graphs.
      precisions: graph -> precision.
      timings: stage -> ms, as in `Result.timings`.
      refined: whether SAM redrew the regions.
      late: whether SAM was left out to keep the deadline.
      width: of the picture, in pixels.
      height: of the picture, in pixels.
      roi: x, y, width, height of what was looked at; None: all of it.
      regions: as in `Result.to_dict`: box (x, y, width, height), area, centroid, contour, score,
        kinds.
      label: what a person said: "good" or "defective".
      labelled_at: when.
      labelled_by: who.
      picture: where the picture lies, relative to the store's folder, or absolute while (or
        because) it stays where the camera put it; None where it was not kept.
      map: the score map of a picture that was kept, as 8-bit gray PNG (255 is 1.0), at most 512
        pixels a side, relative to the store's folder.
      filed: whether the picture has been moved or deleted after the judgement.
      file_size: of the source's file, in bytes.
      file_mtime_ns: of the source's file.
      ignored: regions that were not asked for, as `regions`.
    """

    id: int
    name: str
    serial: str | None
    sha256: str | None
    taken_at: str
    state: str
    attempts: int
    judged_at: str | None
    verdict: str | None
    score: float | None
    limit: float | None
    map_limit: float | None
    reasons: tuple[str, ...]
    message: str | None
    category: str
    bundle: str | None
    calibration: str | None
    version: str | None
    provider: str | None
    precisions: Mapping[str, str]
    timings: Mapping[str, float]
    refined: bool | None
    late: bool | None
    width: int | None
    height: int | None
    roi: tuple[int, int, int, int] | None
    regions: tuple[Mapping[str, Any], ...] = field(repr=False)
    label: str | None
    labelled_at: str | None
    labelled_by: str | None
    picture: str | None
    map: str | None
    filed: bool
    file_size: int | None
    file_mtime_ns: int | None
    ignored: tuple[Mapping[str, Any], ...] = field(repr=False)

    def picture_path(self, store: Path) -> Path | None:
        """Where the picture lies; `store` is the store's file."""
        return None if self.picture is None else store.parent / unprintable(self.picture)

    def map_path(self, store: Path) -> Path | None:
        """Where the score map lies; `store` is the store's file."""
        return None if self.map is None else store.parent / self.map

    def to_dict(self) -> dict[str, Any]:
        """Every field, in JSON's types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("reasons", "regions", "ignored", "roi"):
            values[name] = None if values[name] is None else list(values[name])
        for name in ("precisions", "timings"):
            values[name] = dict(values[name])
        return values


def printable(name: str) -> str:
    """A name that need not be Unicode, as text that every database and file can hold."""
    return name.encode("utf-8", "backslashreplace").decode()


def unprintable(name: str) -> str:
    """Inverse of `printable`."""
    return _BYTE.sub(lambda found: chr(0xDC00 + int(found[1], 16)), name)


_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")
COLUMNS = tuple(f.name for f in fields(Part))
SELECT = "SELECT " + ", ".join(f'"{name}"' for name in COLUMNS) + " FROM parts"
_JSON = ("reasons", "precisions", "timings", "regions", "ignored", "roi")
_FLAGS = ("refined", "late", "filed")


def from_row(row: tuple[Any, ...]) -> Part:
    """The part of a row that `SELECT` gave."""
    values = dict(zip(COLUMNS, row, strict=True))
    for name in _JSON:
        values[name] = json.loads(values[name])
    for name in _FLAGS:
        values[name] = None if values[name] is None else bool(values[name])
    for name in ("reasons", "regions", "ignored", "roi"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Part(**values)


def unrecorded(name: str, category: str, **values: Any) -> Part:
    """A part that no row could be written for yet: its id is 0."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"id": 0, "attempts": 1, "state": JUDGED, "filed": False}
    row |= {"reasons": (), "regions": (), "ignored": (), "precisions": {}, "timings": {}}
    return Part(**{**row, **values, "name": name, "category": category})


def to_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a part, as SQLite takes them."""
    return {name: json.dumps(value) if name in _JSON else value for name, value in values.items()}
