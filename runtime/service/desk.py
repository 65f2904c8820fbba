"""From pictures of a request to results: places, waiting, deadline, the client who leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from clipsam.runtime.core.errors import OutputError, StoreError
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.part import Inspected
from clipsam.runtime.service.guard import write_log
from clipsam.runtime.service.judge import BROKEN, READY, WARMING, Job, Judge
from clipsam.runtime.service.metrics import Metrics
from clipsam.runtime.service.problems import FULL, NOT_READY, TOO_LATE, Problem
from clipsam.runtime.service.recorder import Recorder
from clipsam.runtime.service.settings import Settings


@dataclass(frozen=True, eq=False)
class Asked:
    """What a request asks for.

    Attributes:
      pictures: (name, content of a file or HxWx3 uint8 RGB) of each.
      category: None: the calibration's, or "object".
      serial: of the part.
      record: whether to write it into the store, where there is one.
      timeout: seconds; None: the service's.
    """

    pictures: Sequence[tuple[str, bytes | Image]]
    category: str | None = None
    serial: str | None = None
    record: bool = True
    timeout: float | None = None


@dataclass(frozen=True, eq=False)
class Answered:
    """One picture, judged.

    Attributes:
      image: HxWx3 uint8 RGB.
      result: of it.
      part: its id in the store; None where it is not recorded.
      note: why it is not, or its picture not kept; "": all is well.
    """

    image: Image
    result: Result
    part: int | None = None
    note: str = ""


class Desk:
    """Hands the pictures of requests to the judge."""

    def __init__(
        self, judge: Judge, settings: Settings, metrics: Metrics, recorder: Recorder | None
    ) -> None:
        self.judge, self.settings, self.recorder = judge, settings, recorder
        self._metrics = metrics

    @contextmanager
    def places(self, count: int = 1) -> Iterator[None]:
        """Hold places in the queue. Raises Problem where there are none."""
        judge = self.judge
        if judge.state != READY:
            why = f" ({judge.error})" if judge.state == BROKEN else ""
            after = {"Retry-After": "5"} if judge.state == WARMING else {}
            raise Problem(NOT_READY, f"The service is {judge.state}{why}: send it later.", after)
        if not judge.reserve(count):
            after = {"Retry-After": str(judge.retry_after)}
            raise Problem(
                FULL, f"{judge.places} pictures are under way: send it again later.", after
            )
        try:
            yield
        finally:
            judge.release(count)

    async def ask(self, request: Request, asked: Asked) -> list[Answered]:
        """Judge every picture, whose places are held and whose body was read.

        Raises Problem, ClipSAMError, and ClientDisconnect when nobody waits any more.
        """
        model, most = self.judge.model, self.settings.timeout
        model.bundle.text(model.word(asked.category))  # an unknown one fails here
        until = request.state.began + min(asked.timeout or most, most)
        jobs = [Job(picture, name, asked.category, until) for name, picture in asked.pictures]
        for job in jobs:
            self.judge.submit(job)
        waits = [asyncio.ensure_future(asyncio.wrap_future(job.answer)) for job in jobs]
        await self._wait(request, waits, until)
        seen = [(wait.result().image, wait.result().result()) for wait in waits]
        answers = []
        for (image, result), (name, picture) in zip(seen, asked.pictures, strict=True):
            assert image is not None
            self._metrics.judged(result)
            answers.append(await self._recorded(Answered(image, result), asked, name, picture))
        verdicts = [answer.result.verdict for answer in answers]
        parts = [answer.part for answer in answers]
        request.state.log.update(verdicts=verdicts, parts=parts)
        return answers

    async def _wait(
        self, request: Request, waits: Sequence[asyncio.Future[Inspected]], until: float
    ) -> None:
        """Wait for all, as long as the client does and there is time."""
        gone: asyncio.Future[Any] = asyncio.ensure_future(_left(request))
        every: asyncio.Future[Any] = asyncio.gather(*waits, return_exceptions=True)
        try:
            left = max(0.0, until - time.monotonic())
            done, _ = await asyncio.wait(
                {gone, every}, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if every in done:
                return
            if gone in done:
                raise ClientDisconnect
            raise Problem(
                TOO_LATE,
                "The picture was not judged in time: send fewer at once, or allow more time.",
                {"Retry-After": str(self.judge.retry_after)},
            )
        finally:
            for task in (gone, every):  # what is cancelled is not begun any more
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(gone, every, return_exceptions=True)

    async def _recorded(
        self, answer: Answered, asked: Asked, name: str, picture: bytes | Image
    ) -> Answered:
        if self.recorder is None or not asked.record:
            return answer
        try:
            number, note = await run_in_threadpool(
                self.recorder.record, picture, answer.result, name, asked.serial
            )
        except (OutputError, StoreError) as error:
            self._metrics.unrecorded()
            write_log("store", "error", message=str(error))
            return Answered(answer.image, answer.result, note=str(error))
        return Answered(answer.image, answer.result, number, note)


async def _left(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
