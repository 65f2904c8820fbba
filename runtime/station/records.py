"""Writing judgements, and keeping them in memory while the disk has no room for them."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from clipsam.runtime.core.errors import OutputError, StoreError
from clipsam.runtime.station.filing import Filing
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.intake import Begun
from clipsam.runtime.station.part import TAKEN, Part, unrecorded
from clipsam.runtime.station.store import Store

_MOST_WAITING = 10_000  # judgements; then the oldest is lost, and counted


class Records:
    """The judgements of a station. Never raises for a store that cannot be written."""

    def __init__(self, store: Store, filing: Filing, health: Health) -> None:
        self._store, self._filing, self._health = store, filing, health
        self._waiting: deque[tuple[Begun, dict[str, Any]]] = deque()
        self._lock = threading.RLock()

    @property
    def waiting(self) -> int:
        """How many judgements are in memory alone."""
        return len(self._waiting)

    def holds(self, number: int) -> bool:
        """Whether the judgement of a part is in memory alone."""
        with self._lock:
            return any(begun.number == number for begun, _ in self._waiting)

    def write(self, begun: Begun, values: dict[str, Any]) -> Part:
        """Write a judgement, after those that wait; its part has id 0 where that failed."""
        with self._lock:
            try:
                self._write_waiting()
                part = self._write(begun, values)
                self._health.alarm("store", None)
                return part
            except (OutputError, StoreError) as error:
                self._health.alarm("store", str(error))
                if len(self._waiting) == _MOST_WAITING:
                    self._waiting.popleft()
                    self._health.count("unrecorded")
                self._waiting.append((begun, values))
                return unrecorded(
                    begun.captured.name,
                    begun.category,
                    serial=begun.captured.serial,
                    taken_at=begun.captured.taken_at,
                    **{**values, "reasons": tuple(values.get("reasons", ()))},
                )

    def flush(self) -> bool:
        """Write what waits; whether the store can be written."""
        with self._lock:
            try:
                if self._waiting:
                    self._write_waiting()
                else:
                    self._store.event("writable", "The store can be written again.")
            except (OutputError, StoreError):
                return False
            self._health.alarm("store", None)
            return True

    def _write(self, begun: Begun, values: dict[str, Any]) -> Part:
        if begun.number is None:
            begun.number = self._store.add_judged(
                begun.captured.name, begun.category, **begun.fields, **values
            )
        else:
            self._store.judge(begun.number, **values)
        part = self._store.get(begun.number)
        assert part is not None
        return part

    def _write_waiting(self) -> None:
        while self._waiting:
            begun, values = self._waiting[0]
            try:
                part = self._write(begun, values)
            except StoreError:
                row = None if begun.number is None else self._store.get(begun.number)
                if begun.number is None or (row is not None and row.state == TAKEN):
                    raise
                self._waiting.popleft()  # somebody removed its row
                continue
            self._waiting.popleft()
            self._filing.put_away(part, begun.picture, begun.state, None)
