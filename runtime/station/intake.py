"""Taking a part in: its picture safe on disk, then its row; duplicates are told apart.

A picture is one that was seen before when its bytes are the same and its name or its time of
writing is, too: a file that was renamed or delivered again. It is not judged again; the earlier
answer is repeated. The same bytes under another name and time are another part: a dead camera sends
black frames that are all alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipsam.runtime.core.errors import OutputError, StoreError
from clipsam.runtime.images.image import Image
from clipsam.runtime.station.filing import Filing
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.judgement import NO_PICTURE
from clipsam.runtime.station.part import JUDGED, Part
from clipsam.runtime.station.pictures import sync
from clipsam.runtime.station.sources.base import Captured
from clipsam.runtime.station.sources.files import State, file_digest, state_of
from clipsam.runtime.station.store import Store


@dataclass(eq=False)
class Begun:
    """A part that was taken in.

    Attributes:
      captured: as it came; without its frame.
      category: what it is judged as.
      item: what to judge: a file or a frame; None where there is neither.
      picture: the file that holds it, where there is one.
      number: its id in the store; None while no row could be written.
      fields: of its row, where that has to be written later.
      state: of the file when its bytes were hashed; None for what is the store's own.
      reason: why there is nothing to judge.
      message: the same, as a sentence.
    """

    captured: Captured
    category: str
    item: Path | Image | None
    picture: Path | None
    number: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    state: State | None = None
    reason: str = NO_PICTURE
    message: str = ""

    def overwritten(self) -> bool:
        """Whether a camera's file holds other bytes than when it was taken in."""
        if self.state is None or self.picture is None:
            return False
        found = state_of(self.picture)
        if found in (None, self.state):
            return False
        if file_digest(self.picture) != self.fields.get("sha256"):
            return True
        self.state = found  # delivered once more
        return False


class Intake:
    """Takes parts in for a station."""

    def __init__(
        self,
        store: Store,
        filing: Filing,
        health: Health,
        category: str,
        serial: re.Pattern[str] | None,
        answer: Callable[[Part], None],
    ) -> None:
        self._store, self._filing, self._health = store, filing, health
        self._category, self._serial, self._answer = category, serial, answer

    def begin(self, captured: Captured) -> Begun | None:
        """The part, with its row; None for a picture that was seen before."""
        serial = captured.serial or self._serial_in(captured.name)
        digest, picture = None, captured.path
        if captured.path is not None:
            sync(captured.path)
            digest = file_digest(captured.path)
            if digest is not None and self._is_duplicate(captured, digest):
                return None
        elif captured.image is not None:
            picture, digest = self._filing.write_incoming(captured.image, serial)
            digest = digest or hashlib.sha256(captured.image.tobytes()).hexdigest()
        item = captured.path if captured.path is not None else captured.image
        known = Captured(captured.name, serial=serial, taken_at=captured.taken_at)
        begun = Begun(known, self._category, item, picture, state=captured.state)
        if item is None:
            begun.message = "The trigger came, and the camera gave no picture."
        begun.fields = {
            "taken_at": captured.taken_at,
            "serial": serial,
            "sha256": digest,
            "picture": None if picture is None else self._filing.name_of(picture),
            "file_size": captured.state and captured.state[0],
            "file_mtime_ns": captured.state and captured.state[1],
        }
        try:
            begun.number = self._store.take(captured.name, self._category, **begun.fields)
        except (OutputError, StoreError) as error:
            self._health.alarm("store", str(error))
        self._health.taken()
        return begun

    def again(self, part: Part) -> Begun:
        """A part whose row says `taken`, to be judged now."""
        path = part.picture_path(self._store.path)
        there = path is not None and state_of(path) is not None
        state = None
        if there and part.file_mtime_ns is not None and path is not None:
            if file_digest(path) != part.sha256:  # another picture under its name
                there = False
            else:
                state = state_of(path)
        captured = Captured(part.name, serial=part.serial, taken_at=part.taken_at)
        picture = path if there else None
        fields = {"sha256": part.sha256}
        return Begun(captured, part.category, picture, picture, part.id, fields, state)

    def adopt(self) -> None:
        """Write rows for frames of a camera that an earlier station could write none for."""
        known = {
            part.picture_path(self._store.path)
            for part in self._store.parts("filed = 0 AND picture IS NOT NULL")
        }
        for path, serial in self._filing.pictures.incoming():
            if path not in known:
                self._store.take(
                    path.name,
                    self._category,
                    serial=serial,
                    sha256=file_digest(path),
                    picture=self._filing.name_of(path),
                    attempts=0,
                )

    def _is_duplicate(self, captured: Captured, digest: str) -> bool:
        mtime = captured.state and captured.state[1]
        try:
            same = self._store.same_picture(digest, captured.name, mtime)
        except (OutputError, StoreError):
            return False
        if same is None:
            return False
        self._health.count("duplicates")
        if same.state == JUDGED and captured.path is not None:
            self._answer(same)
            self._filing.discard(same, captured.path)
        return True

    def _serial_in(self, name: str) -> str | None:
        found = self._serial.search(name) if self._serial is not None else None
        if found is None:
            return None
        return found[1] if found.re.groups else found[0]
