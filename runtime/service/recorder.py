"""Rows of a store for parts that came by HTTP.

The row is written before the answer goes out, the picture after the row: a process that is killed
leaves no part half judged, and who got no answer sends the picture again. A store that cannot be
written keeps nobody from getting a verdict.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import cv2

from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.station.filing import Filing
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.judgement import judgement_of
from clipsam.runtime.station.part import JUDGED, Part
from clipsam.runtime.station.pictures import Keep, Pictures, free, map_of, write_safely
from clipsam.runtime.station.schema import now
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import prune

# By a file's first bytes: a client's word for it may be wrong.
_SUFFIXES = (
    (b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"), (b"RIFF", ".webp"),
    (b"II", ".tif"), (b"MM", ".tif"),
)  # fmt: skip


class Recorder:
    """Writes parts into a claimed store."""

    def __init__(self, store: Store, keep: Keep) -> None:
        self.store, self._keep = store, keep
        self._pictures = Pictures(store.pictures)
        filing = Filing(store, keep, Health())
        for part in store.parts(f"filed = 0 AND state = '{JUDGED}'"):  # of one that was killed
            filing.finish(part)

    def record(
        self, picture: bytes | Image, result: Result, name: str, serial: str | None
    ) -> tuple[int, str]:
        """Add a judged part; returns its id, and why its picture could not be kept ("": it could,
        or was not to be). Raises OutputError, StoreError where no row could be written."""
        taken_at = now()
        data = picture if isinstance(picture, bytes) else _png(picture)
        number = self.store.add_judged(
            name,
            result.category,
            taken_at=taken_at,
            serial=serial,
            sha256=hashlib.sha256(data).hexdigest(),
            **judgement_of(result),
        )
        place, problem = None, ""
        if self._keep.wants(result.verdict, number):
            suffix = next((s for head, s in _SUFFIXES if data.startswith(head)), ".png")
            place = self._pictures.place(number, name, taken_at, suffix)
            try:
                self._write(place, data, result)
            except OutputError as error:
                place, problem = None, str(error)
        self.store.file(number, self._relative(place), self._relative(place and map_of(place)))
        return number, problem

    def part(self, number: int) -> Part | None:
        """The judged part of an id."""
        found = self.store.get(number) if 0 < number < 1 << 62 else None
        return found if found is not None and found.state == JUDGED else None

    def prune(self) -> None:
        """Remove what is older or larger than was wanted."""
        prune(self.store, self._keep.retain, self._keep.quota)

    def _write(self, place: Path, data: bytes, result: Result) -> None:
        there = free(self._pictures.folder)
        if there < self._keep.min_free:
            raise OutputError(f"{there / 1e6:.0f} MB are free on the disk: free some space.")
        try:
            self._pictures.write_map(place, result.score_map)
            write_safely(place, data)
        except OutputError:
            with suppress(OSError):  # no row will name it, and no quota could remove it
                map_of(place).unlink(missing_ok=True)
            raise

    def _relative(self, path: Path | None) -> str | None:
        return None if path is None else self._pictures.relative(path)


def _png(image: Image) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
