"""One line of parts for all requests: a bounded queue in front of `ClipSAM.inspect_many`.

A request reserves its places before its body is read, so the queue bounds the memory as well. One
thread runs the line for as long as the service lives; pictures are decoded in the line's own reader
thread, while SAM works on the part before, and CLIP batches whatever waits, of whichever request.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from clipsam.runtime.core.errors import ClipSAMError, ImageError, SessionError
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import decode_image
from clipsam.runtime.part import Inspected, Item
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service.problems import INTERNAL, TOO_LATE, Problem

WARMING, READY, STOPPING, BROKEN = "warming up", "ready", "stopping", "broken"
_POLL = 0.2  # seconds
_MOST_FAILURES = 3  # of the line in a row, without a part judged between
_SMOOTH = 0.1  # weight of the newest part in the mean of what one takes

_LOG = get_logger("service")


@dataclass(eq=False)
class Job:
    """A picture to judge.

    Attributes:
      picture: a file's content, or HxWx3 uint8 RGB.
      name: what messages call it.
      category: a word that the bundle knows; None: the calibration's, or "object".
      expires: on `time.monotonic`'s clock; not begun after it.
      answer: the image with its result, or the error it met.
      begun: when it was decoded.
    """

    picture: bytes | Image
    name: str
    category: str | None
    expires: float
    answer: Future[Inspected] = field(default_factory=Future)
    begun: float = 0.0


class Judge:
    """Judges jobs in a thread of its own. `start`, then `close`."""

    def __init__(
        self,
        model: ClipSAM,
        places: int,
        batch: int,
        max_pixels: int,
        on_state: Callable[[str], None] = lambda state: None,
    ) -> None:
        self.model, self.places = model, places
        self.state, self.error = WARMING, ""
        self._batch, self._max_pixels, self._on_state = batch, max_pixels, on_state
        self._queue: SimpleQueue[Job] = SimpleQueue()
        self._begun: deque[Job] = deque()
        self._held: deque[Job] = deque()  # taken, for a model that comes next
        self._finished = False
        self._lock, self._taken = threading.Lock(), 0
        self._closing, self._seconds, self._judged = threading.Event(), 0.0, 0
        self._thread = threading.Thread(target=self._run, name="clipsam-judge")

    @property
    def taken(self) -> int:
        """Places that are reserved."""
        return self._taken

    @property
    def retry_after(self) -> int:
        """Seconds after which half of the queue should be free, at least 1."""
        return max(1, round(self._seconds * self._taken / 2))

    def reserve(self, places: int = 1) -> bool:
        """Take places in the queue; False where there are not enough. To be given to `release`."""
        with self._lock:
            if self._taken + places > self.places:
                return False
            self._taken += places
            return True

    def release(self, places: int = 1) -> None:
        """Give places back."""
        with self._lock:
            self._taken -= places

    def submit(self, job: Job) -> None:
        """Hand over a job whose place was reserved."""
        self._queue.put(job)
        if not self._thread.is_alive():  # it ended between two looks at its state
            self._fail_waiting()

    def start(self) -> None:
        """Begin: first to warm up."""
        self._thread.start()

    def use(self, model: ClipSAM) -> None:
        """Judge by another model of the same engines, from the next picture on."""
        self.model = model

    def close(self) -> None:
        """Judge what was handed over, and end."""
        self._closing.set()
        if self.state != BROKEN:
            self._set(STOPPING)
        self._thread.join()
        self._fail_waiting()

    def _run(self) -> None:
        try:
            self.model.warm_up()
            if not self._closing.is_set():
                self._set(READY)
            self._judge()
        except Exception as error:
            if not isinstance(error, ClipSAMError):
                _LOG.error("the line failed: %s", traceback.format_exc())
            self.error = str(error)
            self._set(BROKEN)
            self._fail_waiting()

    def _set(self, state: str) -> None:
        self.state = state
        self._on_state(state)

    def _judge(self) -> None:
        """Run one line after another; the next begins only where one failed."""
        failures = 0
        while True:
            before = self._judged
            try:
                self._run_line(self.model)
                if self._finished:
                    return
            except ClipSAMError:  # the same the next time
                raise
            except Exception:
                failures = 1 if self._judged > before else failures + 1
                if failures == _MOST_FAILURES:
                    raise
                _LOG.error("the line failed, and is begun again: %s", traceback.format_exc())

    def _run_line(self, model: ClipSAM) -> None:
        closed = threading.Event()
        line = model.inspect_many(self._items(model, closed), batch=self._batch)
        try:
            last = 0.0
            for inspected in line:
                job = self._begun.popleft()
                self._judged += 1
                now = time.monotonic()
                took, last = now - max(last, job.begun), now
                self._seconds += _SMOOTH * (took - self._seconds) if self._seconds else took
                job.answer.set_result(inspected)
                del inspected, job  # or the picture would stay while the next is waited for
        except Exception as error:
            closed.set()
            line.unjudged()
            self._fail(self._begun, error)
            raise

    def _items(self, model: ClipSAM, closed: threading.Event) -> Iterator[Item]:
        """Decoded pictures for a line, each with its place in `_begun`, while `model` judges."""
        while not closed.is_set():
            try:
                job = self._held.popleft() if self._held else self._queue.get(timeout=_POLL)
            except Empty:
                if self._closing.is_set():
                    self._finished = True
                    return
                job = None
            if self.model is not model:
                self._held.extend([job] if job else [])  # for the next line
                return
            if job is None:
                continue
            if not job.answer.set_running_or_notify_cancel():  # nobody waits for it
                continue
            try:
                image, category = self._image(job), model.word(job.category)
            except (ClipSAMError, Problem) as error:
                job.answer.set_exception(error)
                continue
            job.picture, job.begun = b"", time.monotonic()
            self._begun.append(job)
            yield image, category
            del job, image

    def _image(self, job: Job) -> Image:
        if time.monotonic() > job.expires:
            raise Problem(TOO_LATE, "The queue did not come to this picture in time: send fewer.")
        if not isinstance(job.picture, bytes):
            height, width = job.picture.shape[:2]
            if height * width > self._max_pixels:
                raise ImageError(
                    f"{job.name} has {width}x{height} pixels, over the limit of "
                    f"{self._max_pixels:,}: cut it into tiles, or start with more --max-pixels."
                )
            return job.picture
        try:
            return decode_image(job.picture, job.name, self._max_pixels)
        except ClipSAMError:
            raise
        except Exception as error:  # of a library, on bytes that somebody sent
            _LOG.error("decoding failed: %s", traceback.format_exc())
            raise ImageError(f"{job.name} cannot be decoded: save it again.") from error

    def _fail_waiting(self) -> None:
        waiting = self._held
        while True:
            try:
                waiting.append(self._queue.get_nowait())
            except Empty:
                break
        error = SessionError(self.error or "The service is stopping: send it again later.")
        self._fail(waiting, error)

    def _fail(self, jobs: deque[Job], error: Exception) -> None:
        if not isinstance(error, ClipSAMError):
            error = Problem(INTERNAL, "Judging failed, and was begun again: send it once more.")
        while jobs:
            job = jobs.popleft()
            if not job.answer.done():  # a cancelled one is
                job.answer.set_exception(error)
