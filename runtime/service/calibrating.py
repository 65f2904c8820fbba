"""Calibrations from pictures that clients send: one at a time, beside the line.

Pictures wait on the disk, in a folder of their own within that of the calibrations; a finished
calibration is a file there, whether it is used or not.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from clipsam.runtime.calibration.calibrate import Wanted, calibrate
from clipsam.runtime.calibration.record import SUFFIX, Calibration
from clipsam.runtime.core.errors import ClipSAMError, OptionError
from clipsam.runtime.core.files import not_written, write_bytes
from clipsam.runtime.core.lock import claim
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.options import to_calibrate
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service.judge import Judge
from clipsam.runtime.service.problems import NOT_FOUND, Problem

COLLECTING, RUNNING, DONE, FAILED = "collecting", "running", "done", "failed"
MOST_PARTS, MOST_BYTES = 2000, 4 << 30
_LOG = get_logger("service")


class _Stopped(Exception):  # noqa: N818 - no error: the service ends
    pass


@dataclass(eq=False)
class Run:
    """One calibration on its way."""

    id: str
    category: str
    false_alarms: float | None
    confidence: float
    folder: Path
    parts: list[Path] = field(default_factory=list)
    size: int = 0
    state: str = COLLECTING
    progress: tuple[str, int, int] = ("", 0, 0)
    error: str = ""
    skipped: Sequence[str] = ()
    found: Calibration | None = None
    file: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """What a client is told."""
        what, done, total = self.progress
        values: dict[str, Any] = {
            "id": self.id,
            "state": self.state,
            "category": self.category,
            "parts": len(self.parts),
            "progress": {"what": what, "done": done, "total": total},
            "error": self.error,
            "skipped": list(self.skipped),
            "calibration": None,
        }
        if self.found is not None and self.file is not None:
            promise, planted = self.found.promise, self.found.notes["planted"]
            values["calibration"] = {
                "id": self.found.id,
                "file": self.file.name,
                "limit": self.found.limit,
                "false_alarms": promise.false_alarms,
                "confidence": promise.confidence,
                "parts": promise.parts,
                "above": promise.above,
                "duplicates": promise.duplicates,
                "planted": [planted["found"], planted["of"]],
            }
        return values


class Calibrations:
    """Makes calibrations into `folder`, and has the judge use them. `close` ends one under way.

    Raises OptionError for no folder, or one that another service has; OutputError.
    """

    def __init__(self, judge: Judge, folder: Path) -> None:
        if not folder.is_dir():
            raise OptionError(f"{folder} is no folder: make it, or give another --calibrations.")
        self._judge, self._folder = judge, folder
        try:
            self._claim = claim(folder / ".lock")
        except OSError as error:
            raise not_written(folder / ".lock", error) from error
        if self._claim is None:
            raise OptionError(
                f"{folder} is in use by another `clipsam serve`: give this one --calibrations of "
                "its own."
            )
        self._run: Run | None = None
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        for left in folder.glob(".parts-*"):  # of a service that was killed
            shutil.rmtree(left, ignore_errors=True)

    def begin(self, category: str, false_alarms: float | None, confidence: float) -> Run:
        """Collect parts for a calibration; what was collected before is dropped. Raises OptionError
        while one runs, CategoryError."""
        self._judge.model.bundle.text(category)
        with self._lock:
            if self._run is not None and self._run.state == RUNNING:
                raise OptionError("A calibration is running: wait until it is done.")
            self._drop()
            identity = secrets.token_hex(6)
            folder = self._folder / f".parts-{identity}"
            self._run = Run(identity, category, false_alarms, confidence, folder)
            return self._run

    def get(self, identity: str) -> Run:
        """The calibration of an id. Raises Problem where it is another one by now."""
        if self._run is None or self._run.id != identity:
            raise Problem(NOT_FOUND, "There is no such calibration any more: begin another.")
        return self._run

    def add(self, run: Run, name: str, data: bytes) -> None:
        """Add the picture of a good part. Raises OptionError, OutputError."""
        with self._lock:
            self._expect(run, COLLECTING)
            if len(run.parts) == MOST_PARTS or run.size + len(data) > MOST_BYTES:
                most = f"{MOST_PARTS} parts, or {MOST_BYTES >> 30} GiB of pictures"
                raise OptionError(f"{most}, are enough.")
            safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in name)[-60:]
            path = run.folder / f"{len(run.parts) + 1:04d}-{safe or 'part'}"
            write_bytes(path, data)
            run.parts.append(path)
            run.size += len(data)

    def start(self, run: Run) -> None:
        """Calibrate in a thread. Raises OptionError."""
        with self._lock:
            self._expect(run, COLLECTING)
            run.state = RUNNING
            self._thread = threading.Thread(target=self._work, args=(run,), name="clipsam-learn")
            self._thread.start()

    def use(self, run: Run) -> None:
        """Judge by it from the next picture on. Raises OptionError."""
        self._expect(run, DONE)
        self._judge.use(self._model(run.found))

    def close(self) -> None:
        """End what is under way."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._drop()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def _work(self, run: Run) -> None:
        state = FAILED
        try:
            found = self._calibrate(run)
            path = self._folder / f"{run.category.replace('/', '_')}-{run.id}{SUFFIX}"
            found.write(path)
            run.found, run.file = Calibration.read(path), path
            state = DONE
        except _Stopped:
            run.error = "The service is stopping."
        except Exception as error:
            if not isinstance(error, ClipSAMError):
                _LOG.error("calibrating failed: %s", traceback.format_exc())
            said = str(error) if isinstance(error, ClipSAMError) else "It failed: see the log."
            run.error = said.replace(f"{run.folder}/", "")
        shutil.rmtree(run.folder, ignore_errors=True)
        run.state = state  # last: who sees it finds all the rest

    def _calibrate(self, run: Run) -> Calibration:
        wanted = Wanted(run.false_alarms, run.confidence)
        model = self._model(None)
        made_with = to_calibrate(model.options, model.bundle.id, run.category)

        def progress(what: str, done: int, total: int) -> None:
            run.progress = (what, done, total)
            if self._closing.is_set():
                raise _Stopped

        observe = partial(model.observe, category=run.category)
        area = model.options.area
        # Parts that are sent at the same time come in any order, and a part is compared with those
        # of other folds: by name the same parts give the same limit, as in a folder.
        parts = sorted(run.parts, key=lambda path: (path.name.split("-", 1)[1], path.name))
        done = calibrate(observe, parts, [], wanted, made_with, area, progress)
        run.skipped = [sentence.replace(f"{run.folder}/", "") for sentence in done.skipped]
        return done.calibration

    def _model(self, calibration: Calibration | None) -> ClipSAM:
        """The judge's engines with another calibration, looking where they look now."""
        model = self._judge.model
        options = replace(model.options, limit=None)
        return ClipSAM(model.bundle, model.sessions, options, calibration)

    def _expect(self, run: Run, state: str) -> None:
        if run.state != state:
            raise OptionError(f"The calibration is {run.state}, not {state}.")

    def _drop(self) -> None:
        if self._run is not None:
            shutil.rmtree(self._run.folder, ignore_errors=True)
