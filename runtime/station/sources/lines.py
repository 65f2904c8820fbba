"""Lines of a text stream, read in the background: triggers of a camera, or paths of pictures."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import TextIO

from clipsam.runtime.station.part import printable
from clipsam.runtime.station.sources.base import Captured, Source
from clipsam.runtime.station.sources.files import state_of

_MOST_WAITING = 10_000  # lines; then the writer has to wait
_LONGEST = 200  # characters of a serial number


class Lines:
    """Lines as they come; `get` waits for the next."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: Queue[str | None] = Queue(_MOST_WAITING)
        self.ended = False
        threading.Thread(target=self._read, name="clipsam-lines", daemon=True).start()

    def get(self, seconds: float) -> str | None:
        """The next line without its end, or None when none comes within `seconds`."""
        if self.ended:
            return None
        try:
            line = self._lines.get(timeout=max(seconds, 1e-3))
        except Empty:
            return None
        self.ended = line is None
        return line

    def __len__(self) -> int:
        return self._lines.qsize()

    def _read(self) -> None:
        with suppress(OSError, ValueError), self._stream:  # ValueError: closed
            for line in self._stream:
                self._lines.put(line.rstrip("\r\n"))
        self._lines.put(None)


def serial_of(line: str) -> str | None:
    """A serial number as a trigger says it; None for an empty line."""
    return printable(line.strip()[:_LONGEST]) or None


class PathSource(Source):
    """Pictures named on lines: a path, and after a tab the part's serial number."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def poll(self, seconds: float) -> Captured | None:
        line = self._lines.get(seconds)
        if line is None or not line.strip():
            return None
        name, _, serial = line.partition("\t")
        path = Path(name).absolute()
        return Captured(printable(name), path, serial=serial_of(serial), state=state_of(path))

    @property
    def ended(self) -> bool:
        return self._lines.ended

    def figures(self) -> dict[str, int]:
        return {"waiting": len(self._lines)}
