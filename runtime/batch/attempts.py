"""Which picture ended the process that inspected it, so that none stops a batch for ever."""

from __future__ import annotations

import json

from clipsam.runtime.batch.places import Place
from clipsam.runtime.batch.plan import OWN, Shard

MOST = 3  # processes that a picture may end: one may have been killed just then


class Attempts:
    """A note beside the plan of a shard that was begun: `OUTPUT/_batch/begun-PART.json`.

    It is there while the shard is inspected. Who finds it knows that somebody was killed, and notes
    every picture before it is inspected.
    """

    def __init__(self, output: Place, shard: Shard) -> None:
        self._place = output / OWN / f"begun-{shard.file}.json"
        self._ended: dict[str, int] = {}  # number of a picture in the shard -> processes

    def begin(self) -> bool:
        """Note that the shard is begun; returns whether it was before. Raises OutputError."""
        try:
            note = json.loads(self._place.read())
            self._ended = {str(k): int(v) for k, v in note["ended"].items()}
            at = note["at"]
        except FileNotFoundError:
            self._write(None)
            return False
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # cut off
            at = None
        if at is not None:
            self._ended[str(at)] = self._ended.get(str(at), 0) + 1
        return True

    def allows(self, number: int) -> bool:
        """Whether the picture may be inspected, and note that it is. Raises OutputError."""
        self._write(number)
        return self._ended.get(str(number), 0) < MOST

    def end(self) -> None:
        """The results are written. Raises OutputError."""
        self._place.remove()

    def _write(self, at: int | None) -> None:
        self._place.write(json.dumps({"at": at, "ended": self._ended}).encode())
