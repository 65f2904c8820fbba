"""A camera, a stream or a video file, by OpenCV.

A thread reads frames as fast as they come, so that none is old. Which of them become parts is said
by the trigger: every frame, one an interval, or one for a line. When the station falls behind,
frames are dropped (the newest is judged next, the others are counted) or queued (the camera waits).
A camera that is lost is opened again and again, with waits that double up to half a minute.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.images.image import Image
from clipsam.runtime.station.schema import now
from clipsam.runtime.station.sources.base import Alarm, Captured, Source
from clipsam.runtime.station.sources.lines import Lines, serial_of

DROP, QUEUE = "drop", "queue"
_MOST_QUEUED = 16  # frames, under QUEUE
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds before a lost camera is opened again
_OPEN_MS = 5000  # a stream that does not answer for so long is lost
_FRESH = 2.0  # seconds that a triggered part waits for its frame
_STEP = 0.2  # seconds


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def isOpened(self) -> bool: ...  # noqa: N802
    def get(self, what: int) -> float: ...
    def read(self) -> tuple[bool, NDArray[np.uint8]]: ...
    def release(self) -> None: ...


class CameraSource(Source):
    """Frames of a camera as parts."""

    def __init__(
        self,
        address: str,
        alarm: Alarm,
        *,
        interval: float | None = None,
        triggers: Lines | None = None,
        behind: str | None = None,
        opener: Callable[[str], Capture] | None = None,
    ) -> None:
        """`address` is an index, a file or an address that OpenCV opens.

        With `interval` one frame every so many seconds (of a file: of its own time), with
        `triggers` one for every line, which is the part's serial number. `behind` is "drop" or
        "queue" (None: a file is queued, all else dropped). Raises OptionError where a file cannot
        be opened.
        """
        self._address, self._alarm, self._open = address, alarm, opener or open_capture
        self._file = Path(address).is_file()
        self.name = public_name(address)
        self._interval = None if self._file else interval
        self._triggers = triggers
        self._due = time.monotonic()
        # A part that a trigger names wants the newest frame, never one of a queue.
        every = self._interval is None and triggers is None
        self._room = _MOST_QUEUED if every and (behind or (DROP, QUEUE)[self._file]) == QUEUE else 0
        self._changed = threading.Condition()
        self._frames: list[tuple[int, float, str, Image]] = []
        self._count = self._dropped = self._lost = 0
        self._stop, self._done = threading.Event(), False
        self._capture: Capture | None = None
        self._step = 1  # every how many frames one is taken
        if self._file:
            self._capture = self._open(address)
            if not self._capture.isOpened():
                raise OptionError(f"{address} cannot be opened as a video: give another SOURCE.")
            if interval is not None:
                rate = self._capture.get(cv2.CAP_PROP_FPS)
                self._step = max(1, round(interval * rate))
        self._thread = threading.Thread(target=self._run, name="clipsam-camera", daemon=True)
        self._thread.start()

    def poll(self, seconds: float) -> Captured | None:
        if self._triggers is not None:
            line = self._triggers.get(seconds)
            if line is None:
                return None
            frame = self._newest(time.monotonic(), _FRESH)
            number = "no picture" if frame is None else f"frame {frame[0]}"
            return Captured(
                f"{self.name} {number}",
                image=None if frame is None else _rgb(frame[3]),
                serial=serial_of(line),
                taken_at=now() if frame is None else frame[2],
            )
        if self._interval is None:
            frame = self._next(seconds)
        else:
            if (wait := self._due - time.monotonic()) > seconds:
                time.sleep(seconds)
                return None
            time.sleep(max(0.0, wait))
            frame = self._newest(self._due, seconds)
            if frame is not None:  # missed ones are not made up for
                missed = (time.monotonic() - self._due) // self._interval
                self._due += self._interval * (1 + missed)
        if frame is None:
            return None
        return Captured(f"{self.name} frame {frame[0]}", image=_rgb(frame[3]), taken_at=frame[2])

    @property
    def ended(self) -> bool:
        if self._triggers is not None and self._triggers.ended:
            return True
        with self._changed:
            return self._done and not self._frames

    def figures(self) -> dict[str, int]:
        with self._changed:
            return {"frames": self._count, "dropped": self._dropped, "lost": self._lost}

    def close(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_OPEN_MS / 1e3 + 1)

    def _next(self, seconds: float) -> tuple[int, float, str, Image] | None:
        """The oldest frame that waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._done, seconds)
            frame = self._frames.pop(0) if self._frames else None
            self._changed.notify_all()
            return frame

    def _newest(self, since: float, seconds: float) -> tuple[int, float, str, Image] | None:
        """The newest frame, if it came after `since` or comes within `seconds`."""
        with self._changed:
            self._changed.wait_for(
                lambda: (self._frames and self._frames[-1][1] >= since) or self._done, seconds
            )
            fresh = self._frames and self._frames[-1][1] >= since
            return self._frames.pop() if fresh else None

    def _run(self) -> None:
        wait = _FIRST_WAIT
        while not self._stop.is_set():
            capture, self._capture = self._capture or self._open(self._address), None
            try:
                seen = self._read(capture)
            finally:
                capture.release()
            if self._file or self._stop.is_set():
                break
            wait = _FIRST_WAIT if seen else min(2 * wait, _LONGEST_WAIT)
            self._lost += seen
            self._alarm(
                "camera", f"{self.name} gives no pictures; it is opened again in {wait:g} s."
            )
            self._stop.wait(wait)
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _read(self, capture: Capture) -> bool:
        """Read frames until there are none; returns whether there was one."""
        seen = False
        while capture.isOpened() and not self._stop.is_set():
            try:
                there, frame = capture.read()
            except cv2.error:  # of a stream that is damaged: opened again like one that is lost
                break
            if not there:
                break
            if not seen:
                self._alarm("camera", None)
            seen = True
            self._put(frame)
        return seen

    def _put(self, frame: NDArray[np.uint8]) -> None:
        with self._changed:
            self._count += 1
            if (self._count - 1) % self._step:
                return
            if self._room:
                while len(self._frames) >= self._room and not self._stop.is_set():
                    self._changed.wait(_STEP)
            else:
                if self._interval is None and self._triggers is None:
                    self._dropped += len(self._frames)
                self._frames.clear()
            # A driver may use its buffer for the next frame.
            self._frames.append((self._count, time.monotonic(), now(), frame.copy()))
            self._changed.notify_all()


def open_capture(address: str) -> Capture:
    """Open an index, a file or a stream; look at `isOpened`."""
    if address.isdecimal():
        return cv2.VideoCapture(int(address))  # type: ignore[return-value]
    if "://" not in address:
        return cv2.VideoCapture(address)  # type: ignore[return-value]
    waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _OPEN_MS]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, waits)  # type: ignore[return-value]


def is_camera(source: str) -> bool:
    """Whether a source is an index, an address or a video file, and no folder."""
    return source.isdecimal() or re.match(r"\w+://", source) is not None or Path(source).is_file()


def public_name(address: str) -> str:
    """What a camera is called in rows and messages: its address without user and password."""
    if address.isdecimal():
        return f"camera {address}"
    if "://" not in address:
        return Path(address).name
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _rgb(frame: NDArray[np.uint8]) -> Image:
    code = cv2.COLOR_GRAY2RGB if frame.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(frame, code), np.uint8)
