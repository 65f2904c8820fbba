"""A line of parts: reading, CLIP and SAM work on successive images at the same time.

Three threads and three queues, a part in one place at a time and never overtaking another:

    source -> [read, check, shrink] -> [CLIP + UMCI, batched] -> [prompts, SAM, fusion] -> consumer

Every stage calls what `ClipSAM.inspect` calls, so the results are the same. One semaphore bounds
the parts under way, and with them the memory: no image is taken from the source before there is
room for it, so a slow consumer holds the source back.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Session
from clipsam.runtime.core.errors import ClipSAMError, OptionError, SessionError
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image, check_image
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.part import Inspected, Item, Part, too_large
from clipsam.runtime.stages.rough_map import SCALED_TOGETHER, Found, Looks, find_looks
from clipsam.runtime.timing import Clock

_LOG = get_logger()

# How long a line that is stopped waits for its source, in seconds. A camera may wait for a part
# that never comes: its thread then ends with its next picture, or with the process.
_GRACE = 1.0
_WAKE = 0.5  # seconds


@dataclass(frozen=True)
class _End:
    """What follows the last part: the end, or what ended the line."""

    error: BaseException | None = None


_Queue: TypeAlias = "SimpleQueue[Part | _End]"
# image, category, what CLIP was shown and what it found, clock -> result
Refine: TypeAlias = Callable[[Image, str, Looks, Found, Clock], Result]


class Line:
    """The threads of one `ClipSAM.inspect_many`, started by `run`, stopped when that ends."""

    def __init__(
        self,
        clip_umci: Session,
        text: Callable[[str], NDArray[np.float32]],
        look: Callable[[Image], Looks],
        refine: Refine,
        probe: Callable[[], object],
        category: str,
        compare: bool = False,
        batch: int = 1,
        ahead: int | None = None,
    ) -> None:
        ahead = 2 * batch if ahead is None else ahead
        if batch < 1 or ahead < batch - 1:
            raise OptionError(
                f"batch={batch} must be at least 1 and ahead={ahead} at least batch - 1, or no "
                "batch would ever be full."
            )
        if batch > 1 and clip_umci.precision in SCALED_TOGETHER:
            raise OptionError(
                f"batch={batch} would let images change each other's results: "
                f"{clip_umci.precision} scales what it multiplies by the largest value of the "
                "whole batch. Use batch=1, or precision 'fp32'."
            )
        self._clip_umci, self._text, self._look = clip_umci, text, look
        self._refine_one, self._compare = refine, compare
        self._probe = probe
        self._category = category
        self._room = threading.Semaphore(ahead + 1)
        self._stopping = False
        self._under_way: deque[Part] = deque()  # taken and not handed out
        read, found, done = (SimpleQueue[Part | _End]() for _ in range(3))
        self._read, self._done = read, done
        # Daemons, so that a source that waits for ever does not keep the process.
        self._reader, *self._workers = (
            threading.Thread(target=target, args=args, name=f"clipsam-{name}", daemon=True)
            for name, target, args in (
                ("read", self._take, ()),
                ("clip", self._work, (self._find, read, found, batch)),
                ("sam", self._work, (self._refine, found, done, 1)),
            )
        )

    def run(self, images: Iterable[Item]) -> Generator[Inspected, None, None]:
        """Every item of `images` inspected, in order."""
        self._images = images
        try:
            atexit.register(self._stop)  # daemons must not be cut off within an engine
            for thread in (self._reader, *self._workers):
                thread.start()
            while isinstance(part := self._next(), Part):
                assert part.outcome is not None
                self._under_way.popleft()
                yield Inspected(part.item, part.image, part.outcome)
                del part  # or its image would stay while the next is waited for
                self._room.release()
            if part.error is not None:
                raise part.error
        finally:
            self._stop()
            atexit.unregister(self._stop)

    def unjudged(self, timeout: float | None) -> list[Item]:
        """See `Inspections.unjudged`."""
        if self._reader.is_alive():
            self._reader.join(timeout)
            if self._reader.is_alive():
                raise TimeoutError(
                    "The source is still being asked for its next picture, which belongs to this "
                    "line: ask again when it has come."
                )
        return [part.given_back() for part in self._under_way]

    def _next(self) -> Part | _End:
        """What is done next. Wakes now and then, so that Ctrl-C is noticed wherever it went."""
        while True:
            with suppress(Empty):
                return self._done.get(timeout=_WAKE)

    def _stop(self) -> None:
        """Let every thread finish what it does, and end."""
        self._stopping = True
        self._room.release()  # for the reader, should it wait for room
        self._read.put(_End())  # for the others, should they wait for the reader
        for thread in (*self._workers, self._reader):
            # The garbage collector may close a forgotten line within one of its own threads.
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(_GRACE if thread is self._reader else None)

    def _take(self) -> None:
        """The reader: takes items from the source as there is room, and makes CLIP's inputs."""
        end = _End()
        try:
            source, nothing = iter(self._images), object()
            while self._room.acquire() and not self._stopping:
                item = next(source, nothing)
                if item is nothing:
                    break
                self._read.put(self._load(item))  # type: ignore[arg-type]
                del item
        except BaseException as error:  # the source's own: raised where its image would have been
            end = _End(error)
        self._read.put(end)

    def _work(
        self, stage: Callable[[list[Part]], None], source: _Queue, sink: _Queue, most: int
    ) -> None:
        """A worker: takes up to `most` parts that wait, does its stage, hands them on."""
        end = None
        try:
            while end is None:
                parts, end = _waiting(source, most)
                if self._stopping:
                    break
                stage(parts)
                while parts:  # and no name for the last: its image would stay until the next
                    sink.put(parts.pop(0))
        except BaseException as error:  # no fault of an image: the line ends
            end = _End(error)
        sink.put(end or _End())

    def _load(self, item: Item) -> Part:
        part = Part(item)
        self._under_way.append(part)
        source, part.category = item if isinstance(item, tuple) else (item, self._category)
        try:
            part.text = self._text(part.category)
            if isinstance(source, str | Path):
                with part.clock("read"):
                    part.image = read_image(source)
            else:  # a copy: a camera's driver may use its buffer for the next picture
                part.image = np.array(check_image(source))
            with part.clock("rough"):
                part.looks = self._look(part.image)
        except ClipSAMError as error:
            self._probe_after(error)  # a device may have made CLIP's inputs
            part.outcome = error
        except MemoryError:
            part.outcome = too_large(source)
        return part

    def _find(self, parts: list[Part]) -> None:
        """CLIP and UMCI for all parts that could be read, in one call."""
        sound = [part for part in parts if part.outcome is None]
        if not sound:
            return
        looks = [part.looks for part in sound if part.looks is not None]
        texts = [part.text for part in sound if part.text is not None]
        start = time.perf_counter()
        try:
            found = find_looks(self._clip_umci, looks, np.stack(texts), self._compare)
        except ClipSAMError as error:
            self._probe_after(error)
            for part in sound:
                part.outcome = error
            return
        passed = (time.perf_counter() - start) * 1e3
        for part, part.found in zip(sound, found, strict=True):
            part.clock.add("rough", passed)

    def _refine(self, parts: list[Part]) -> None:
        for part in parts:
            if part.image is None or part.looks is None or part.found is None:
                continue
            try:
                part.outcome = self._refine_one(
                    part.image, part.category, part.looks, part.found, part.clock
                )
            except ClipSAMError as error:
                self._probe_after(error)
                part.outcome = error
            except MemoryError:
                part.outcome = too_large(part.item)
            part.looks = part.found = None

    def _probe_after(self, error: ClipSAMError) -> None:
        """Raise `error` when the engines are to blame, not the image they failed on: when they
        fail on any."""
        if isinstance(error, SessionError):
            try:
                self._probe()
            except SessionError:
                raise error from None
            _LOG.info("the engines failed on one image, and run: %s", error)


class Inspections:
    """The results of a line, in order: an iterator. Dropping it, or `close`, stops the line."""

    def __init__(self, line: Line, images: Iterable[Item]) -> None:
        self._line, self._results = line, line.run(images)

    def __iter__(self) -> Inspections:
        return self

    def __next__(self) -> Inspected:
        return next(self._results)

    def close(self) -> None:
        """Stop the line; what was taken and not handed out is kept for `unjudged`."""
        self._results.close()

    def unjudged(self, timeout: float | None = None) -> list[Item]:
        """Stop the line; returns what it took from the source and never handed out, in order.

        Go on with `camera = itertools.chain(line.unjudged(), camera)`, and no picture is lost.
        Arrays are the line's own copies. A source that is being waited for hands its next picture
        to this line still, so this waits for it, `timeout` seconds at most (None: for ever), then
        raises TimeoutError; do not start another line on the source before.
        """
        self.close()
        return self._line.unjudged(timeout)


def check_iterable(images: object) -> None:
    """Raise OptionError for one image, or the name of one, in place of several."""
    if isinstance(images, str | bytes | Path) or getattr(images, "ndim", 4) < 4:
        raise OptionError(
            "inspect_many takes an iterable of images and was given one: put it in a list, or "
            "use inspect."
        )


def _waiting(source: _Queue, most: int) -> tuple[list[Part], _End | None]:
    """The next part and those behind it that are there already: nobody waits for a batch."""
    parts: list[Part] = []
    found = source.get()
    while isinstance(found, Part):
        parts.append(found)
        if len(parts) == most:
            return parts, None
        try:
            found = source.get_nowait()
        except Empty:
            return parts, None
    return parts, found
