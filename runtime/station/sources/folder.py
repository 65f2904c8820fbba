"""A folder that a camera writes to, with its sub-folders.

watchfiles tells of changes as they happen; the folder is searched through as well, at the start and
now and then, since a network folder tells nothing and a burst may be told in part.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import watchfiles

from clipsam.runtime.images.reader import SUFFIXES
from clipsam.runtime.station.part import printable
from clipsam.runtime.station.sources.base import Alarm, Captured, Source
from clipsam.runtime.station.sources.files import State, ends_well, state_of

_SETTLE = 0.3  # seconds that a file must stay as it is, where its end tells nothing
_SOON = 1.0  # seconds after which a search follows what may have been missed
_STEP = 0.05  # seconds between looks at files that are being written


@dataclass
class _Waiting:
    """A file that may still be written to."""

    state: State
    since: float  # when it was first seen in this state


class FolderSource(Source):
    """Every picture of a folder, each once it is whole, the oldest first."""

    def __init__(
        self,
        folder: Path,
        alarm: Alarm,
        known: Callable[[str, State], bool],
        *,
        without: Path | None = None,
        rescan: float = 10.0,
        patience: float = 10.0,
    ) -> None:
        """`known` says whether a name in a state was judged before; `without` is not looked into.

        A file that does not end as a picture does is waited for `patience` seconds, in which it
        does not change, and then given as it is. Between two searches are `rescan` seconds.
        """
        self.folder = folder.absolute()
        self._alarm, self._known, self._without = alarm, known, without
        self._rescan, self._patience = rescan, patience
        self._waiting: dict[Path, _Waiting] = {}
        self._given: dict[Path, State] = {}
        self._ready: deque[tuple[Path, State]] = deque()
        self._told: SimpleQueue[str] = SimpleQueue()
        self._scan_at, self._searched = 0.0, False
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="clipsam-watch", daemon=True)
        self._watcher.start()

    def poll(self, seconds: float) -> Captured | None:
        end = time.monotonic() + seconds
        while True:
            while self._ready:
                path, state = self._ready.popleft()
                if state_of(path) == state:  # else it is told of again, or found by a search
                    self._given[path] = state
                    return Captured(self._name(path), path, state=state)
                self._scan_at = min(self._scan_at, time.monotonic() + self._patience)
            self._look()
            left = end - time.monotonic()
            if self._ready:
                continue
            if left <= 0:
                return None
            with suppress(Empty):
                self._consider(Path(self._told.get(timeout=min(left, _STEP))))

    def figures(self) -> dict[str, int]:
        return {"waiting": len(self._waiting) + len(self._ready)}

    def close(self) -> None:
        self._stop.set()
        self._watcher.join(5)

    def _look(self) -> None:
        """Search where it is time to, and move what is whole to `_ready`, which is empty."""
        if time.monotonic() >= self._scan_at:
            self._search()
            wait = self._rescan if self._searched else _SOON  # the watcher may not run yet
            self._scan_at, self._searched = time.monotonic() + min(wait, self._rescan), True
        with suppress(Empty):
            while True:
                self._consider(Path(self._told.get_nowait()))
        now, whole = time.monotonic(), []
        for path, waiting in list(self._waiting.items()):
            state = state_of(path)
            if state is None:  # deleted, or renamed and told of under its new name
                del self._waiting[path]
            elif state != waiting.state:
                waiting.state, waiting.since = state, now
            elif self._is_whole(path, now - waiting.since):
                del self._waiting[path]
                whole.append((path, state))
        whole.sort(key=lambda found: (found[1][1], found[0]))
        self._ready.extend(whole)

    def _is_whole(self, path: Path, unchanged: float) -> bool:
        if unchanged >= self._patience:
            return True
        ends = ends_well(path)
        return unchanged >= _SETTLE if ends is None else ends

    def _consider(self, path: Path) -> None:
        """Have a look at a path, unless it was given in the state it is in."""
        if path in self._waiting or not path.is_relative_to(self.folder):
            return
        if self._without and path.is_relative_to(self._without):
            return
        if any(part.startswith(".") for part in path.relative_to(self.folder).parts):
            return
        if path.suffix.lower() not in SUFFIXES:
            if os.path.isdir(path):  # noqa: PTH112 - Path's raises where it is denied
                # a new one may have been written to before it was watched
                self._scan_at = min(self._scan_at, time.monotonic() + _SOON)
            return
        state = state_of(path)
        if state is None or self._given.get(path) == state:
            return
        if self._known(self._name(path), state):
            self._given[path] = state
            return
        self._waiting[path] = _Waiting(state, time.monotonic())

    def _search(self) -> None:
        """Consider every file, and forget those that were given and are gone."""
        found = set()
        for path in self._walk():
            found.add(path)
            self._consider(path)
        self._given = {path: state for path, state in self._given.items() if path in found}

    def _walk(self) -> Iterator[Path]:
        failed: list[OSError] = []
        for parent, folders, names in os.walk(self.folder, onerror=failed.append):
            folders[:] = [n for n in folders if not n.startswith(".")]
            if self._without and Path(parent) == self._without:
                folders.clear()
                continue
            for name in names:
                yield Path(parent, name)
        # A folder below that went away between two looks is nothing to worry about.
        ours = str(self.folder)
        lost = [e for e in failed if str(e.filename) == ours or e.errno == errno.EACCES]
        self._alarm(
            "folder", f"{lost[0].filename} cannot be read ({lost[0].strerror})." if lost else None
        )

    def _watch(self) -> None:
        """The thread that is told of changes; without it searches find everything, only later."""
        while not self._stop.is_set():
            try:
                for changes in watchfiles.watch(
                    self.folder,
                    watch_filter=None,
                    debounce=50,
                    step=20,
                    stop_event=self._stop,
                    rust_timeout=500,
                    raise_interrupt=False,
                    ignore_permission_denied=True,
                ):
                    for _, path in changes:
                        self._told.put(path)
            except Exception:  # the folder went away, or cannot be watched
                self._stop.wait(self._rescan)

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.folder).as_posix())
