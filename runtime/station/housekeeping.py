"""What goes on beside the parts, in a thread: telling how it goes, and keeping the store small."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipsam.runtime.core.errors import OutputError, StoreError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.metrics import Exposition
from clipsam.runtime.station.notify import notify, watchdog_seconds
from clipsam.runtime.station.pictures import Keep
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import PRUNE_EVERY, prune

_TELL = 5.0  # seconds between two writings of the health file


class Housekeeping:
    """A context manager: runs while it is open."""

    def __init__(
        self,
        health: Health,
        store: Store,
        keep: Keep,
        snapshot: Callable[[], dict[str, Any]],
        *,
        health_file: Path | None = None,
        metrics_file: Path | None = None,
        metrics_port: int | None = None,
    ) -> None:
        self._health, self._store, self._keep, self._snapshot = health, store, keep, snapshot
        self._health_file, self._metrics_file = health_file, metrics_file
        self._metrics = Exposition(snapshot)
        if metrics_port is not None:
            self._metrics.serve(metrics_port)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clipsam-upkeep", daemon=True)

    def tell(self) -> None:
        """Write the files that were asked for; a full disk is an alarm, not the end."""
        try:
            if self._health_file is not None:
                text = json.dumps(self._snapshot(), indent=1)
                write_bytes(self._health_file, text.encode() + b"\n")
            if self._metrics_file is not None:
                self._metrics.write(self._metrics_file)
        except OutputError as error:
            self._health.alarm("health", str(error))
        else:
            self._health.alarm("health", None)

    def __enter__(self) -> Housekeeping:
        self.tell()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._metrics.close()
        self.tell()

    def _run(self) -> None:
        within = watchdog_seconds()
        beat = min(1.0, within / 3) if within else 1.0
        tell_at, prune_at = time.monotonic() + _TELL, time.monotonic()
        while not self._end.wait(beat):
            if self._health.alive:  # else systemd ends the process and starts it again
                notify("WATCHDOG=1")
            if time.monotonic() >= tell_at:
                tell_at = time.monotonic() + _TELL
                self.tell()
                counts = self._snapshot()["parts"]
                notify("STATUS=" + ", ".join(f"{n} {name}" for name, n in counts.items()))
            if time.monotonic() >= prune_at:
                prune_at = time.monotonic() + PRUNE_EVERY
                self._prune()

    def _prune(self) -> None:
        try:
            prune(self._store, self._keep.retain, self._keep.quota)
        except (OutputError, StoreError) as error:
            self._health.alarm("prune", str(error))
        else:
            self._health.alarm("prune", None)
