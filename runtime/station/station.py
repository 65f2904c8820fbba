"""The station itself: takes parts in, has them judged, answers, and puts their pictures away.

The order is what keeps parts from being lost or judged twice, wherever the process is killed:

    picture safe on disk, row `taken`, judged, row `judged`, answer, picture moved or deleted

A station that starts takes up what an earlier one left: rows that are taken are judged one at a
time, each attempt counted on disk before it begins, so a picture that kills the process is passed
over after `MAX_ATTEMPTS`; rows that are judged have their picture put away.
"""

from __future__ import annotations

import re
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from clipsam.runtime.core.errors import ClipSAMError, OutputError, SessionError, StoreError
from clipsam.runtime.core.result import Result
from clipsam.runtime.part import Inspected
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.station.filing import Filing
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.intake import Begun, Intake
from clipsam.runtime.station.judgement import (
    CRASHED,
    FAILED,
    MISSING,
    OVERWRITTEN,
    judgement_of,
    not_judged,
)
from clipsam.runtime.station.part import JUDGED, Part
from clipsam.runtime.station.pictures import Keep
from clipsam.runtime.station.records import Records
from clipsam.runtime.station.schema import now
from clipsam.runtime.station.sources.base import Source
from clipsam.runtime.station.store import Store
from clipsam.runtime.stream import Inspections

MAX_ATTEMPTS = 2
_MOST_FAILURES = 3  # of the line in a row, without a part judged between
_RETRY = 5.0  # seconds between two tries to write what could not be written
_POLL = 0.2  # seconds

Answer = Callable[[Part], None]


@dataclass(frozen=True)
class Options:
    """How a station judges and keeps.

    Attributes:
      category: what every part is; None: the calibration's, or "object".
      deadline_ms: see `ClipSAM.inspect_many`.
      serial: finds a part's serial number in its name: the first group, or the whole match.
      keep: which pictures are kept.
    """

    category: str | None = None
    deadline_ms: float | None = None
    serial: re.Pattern[str] | None = None
    keep: Keep = field(default_factory=Keep)


class Station:
    """One line of parts. Make it with a claimed store, then `run`; `stop` from anywhere."""

    def __init__(
        self,
        model: ClipSAM,
        store: Store,
        source: Source,
        options: Options,
        answers: Sequence[Answer] = (),
        health: Health | None = None,
    ) -> None:
        self.model, self.store, self.source, self.options = model, store, source, options
        self.health = health or Health()
        self.health.on_alarm = self.note
        self._answers = answers
        self._filing = Filing(store, options.keep, self.health)
        self._records = Records(store, self._filing, self.health)
        self._category = model.word(options.category)
        self._intake = Intake(
            store, self._filing, self.health, self._category, options.serial, self._answer
        )
        self._begun: deque[Begun] = deque()
        self._left = False  # whether rows of an earlier station wait for room on the disk
        self._retry_at = 0.0
        self._stopping = threading.Event()
        self._answering = threading.Lock()

    def stop(self) -> None:
        """Take no more parts; `run` returns when those under way are judged."""
        self._stopping.set()

    def note(self, kind: str, message: str) -> None:
        """An event into the store, if it can be written."""
        with suppress(OutputError, StoreError):
            self.store.event(kind, message)

    def run(self) -> None:
        """Judge parts until the source ends or `stop` is called.

        Raises SessionError when the engines fail on anything, and what else fails three times in
        a row; parts under way stay `taken` then.
        """
        failures = 0
        self._take_up()
        while True:
            before = self.health.judged_count
            try:
                self._run_line()
                if self._stopping.is_set() or self.source.ended:
                    break
                failures = 0
            except ClipSAMError:
                raise
            except Exception as error:
                _print_traceback()
                failures = 1 if self.health.judged_count > before else failures + 1
                if failures == _MOST_FAILURES:
                    raise
                self.health.alarm("line", f"{type(error).__name__}: {error}")
            self._take_up()
        if self._records.waiting:
            self._records.flush()

    def _run_line(self) -> None:
        """Judge what the source gives, several parts at a time, until there is a reason to end."""
        closed = threading.Event()
        line = self.model.inspect_many(
            self._items(closed),
            self._category,
            deadline_ms=self.options.deadline_ms,
            ahead=None if self.options.deadline_ms is None else 0,
        )
        try:
            for inspected in line:
                self._done(self._begun[0], inspected)
                self._begun.popleft()
                self.health.alarm("line", None)
                del inspected  # or its picture would stay while the next is waited for
        except SessionError:
            self._give_back(closed, line)
            raise
        except Exception:
            closed.set()
            line.unjudged()
            raise
        except BaseException:  # told to stop at once
            self._give_back(closed, line)
            raise

    def _give_back(self, closed: threading.Event, line: Inspections) -> None:
        """No part under way is to blame for what ended the line."""
        closed.set()
        line.unjudged()
        with suppress(OutputError, StoreError):
            self.store.give_back([b.number for b in self._begun if b.number is not None])

    def _items(self, closed: threading.Event) -> Iterator[Any]:
        """The pictures for a line, each with its row written and its place in `_begun`."""
        while not (closed.is_set() or self._stopping.is_set()):
            if (self._records.waiting or self._left) and time.monotonic() > self._retry_at:
                self._retry_at = time.monotonic() + _RETRY
                if self._records.flush() and self._left:
                    return  # the line ends, so that they are taken up
            captured = self.source.poll(_POLL)
            if captured is None:
                if self.source.ended:
                    return
                continue
            begun = self._intake.begin(captured)
            if begun is None:
                continue
            if begun.item is None:
                self._finish(begun, not_judged(begun.reason, begun.message), None)
                continue
            self._begun.append(begun)
            yield begun.item
            del begun

    def _done(self, begun: Begun, inspected: Inspected) -> None:
        values = judgement_of(inspected.outcome)
        if begun.overwritten():
            values = not_judged(
                OVERWRITTEN,
                f"{begun.picture} was written to while it was judged: have the camera write new "
                "names.",
            )
        result = inspected.outcome if isinstance(inspected.outcome, Result) else None
        self._finish(begun, values, result)

    def _finish(self, begun: Begun, values: dict[str, Any], result: Result | None) -> None:
        """Write the judgement, answer, put the picture away."""
        begun.item = None  # a frame is needed no more
        part = self._records.write(begun, {**values, "judged_at": now()})
        self._answer(part)
        self.health.judged(part)
        if part.id:
            self._filing.put_away(part, begun.picture, begun.state, result)

    def _answer(self, part: Part) -> None:
        with self._answering:
            for answer in self._answers:
                try:
                    answer(part)
                except Exception as error:  # a missing answer reads as reject: the line goes on
                    self.health.alarm("answers", f"{type(error).__name__}: {error}")
                else:
                    self.health.alarm("answers", None)

    def _take_up(self) -> None:
        """Finish what an earlier station, or a line that failed, left behind."""
        self.health.forget_under_way()
        left = [b for b in self._begun if b.number is None]
        self._begun.clear()
        for begun in left:
            self._judge_alone(begun)
        try:
            self._intake.adopt()
            for part in self.store.parts("filed = 0"):
                if self._stopping.is_set():
                    return
                if self._records.holds(part.id):
                    continue
                if part.state == JUDGED:
                    self._filing.finish(part)
                else:
                    self.health.count("recovered")
                    self._judge_alone(self._intake.again(part))
            self._left = False
        except OutputError as error:
            self._left = True
            self.health.alarm("store", str(error))

    def _judge_alone(self, begun: Begun) -> None:
        """Judge one part and no other, so that it is the one to blame."""
        self.health.taken()
        number, problem = begun.number, ""
        if begun.item is None:
            message = f"The picture of {begun.captured.name} is gone."
            self._finish(begun, not_judged(MISSING, message), None)
            return
        for _ in range(MAX_ATTEMPTS):
            if number is not None and self.store.begin(number) > MAX_ATTEMPTS:
                break
            try:
                line = self.model.inspect_many([begun.item], begun.category)
                with closing(line):
                    self._done(begun, next(line))
                return
            except SessionError:
                if number is not None:
                    self.store.give_back([number])
                raise
            except ClipSAMError as error:  # such as a category that the bundle does not know
                self._finish(begun, judgement_of(error), None)
                return
            except Exception as error:
                _print_traceback()
                problem = f" ({type(error).__name__}: {error})"
        message = f"Judging {begun.captured.name} failed {MAX_ATTEMPTS} times{problem}."
        self._finish(begun, not_judged(FAILED if problem else CRASHED, message), None)


def _print_traceback() -> None:
    """Of what is being handled, on stderr, where somebody reads it."""
    with suppress(OSError, ValueError):
        traceback.print_exc()
