"""Parts one after another, each in a process with a limit; what each found is a file of its own.

A run that ends early, however it ends, is gone on with by starting it again: what was measured is
kept, what failed or could not run is tried again. Figures of another machine are never kept.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from harness import job
from harness.machine import GpuMonitor

from clipsam.runtime.core.errors import (
    ClipSAMError,
    MissingBackendError,
    OutputError,
    ProviderError,
)
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.core.lock import try_lock
from gpu_day.parts import Part

MEASURED, NOT_RUN, FAILED, TIMED_OUT = "measured", "not run", "failed", "timed out"
Result = dict[str, Any]
_LEAST = 10  # seconds: with less time left no part is begun


class Day:
    """The parts of one folder.

    Attributes:
      results: part -> `status`, `reason`, `figures`, `seconds`, `date`, and `on`: what it ran on.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], say: Callable[[str], object]) -> None:
        self.folder, self.parts, self.say = folder.resolve(), list(parts), say
        self.results: dict[str, Result] = {}
        for part in self.parts:
            with contextlib.suppress(OSError, ValueError):
                self.results[part.name] = json.loads(self._file(part, "json").read_text())

    def run(
        self, minutes: float | None = None, changed: Callable[[], object] = lambda: None
    ) -> bool:
        """Run what is not measured yet; whether no part failed.

        With `minutes` no part goes on beyond them: one that is cut off has no result and is begun
        again next time. Calls `changed` after every part. Raises OutputError.
        """
        end = None if minutes is None else time.monotonic() + 60 * minutes
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            for part in self.parts:
                if self._kept(part):
                    self.say(f"{part.name}: kept, measured {self.results[part.name]['date']}")
                    continue
                self.results.pop(part.name, None)
                self._file(part, "json").unlink(missing_ok=True)
                left = None if end is None else end - time.monotonic()
                if left is not None and left < _LEAST:
                    self.say(f"{part.name}: no time left, start again to go on here")
                    continue
                result = self._run(part, left)
                if result is None:
                    self.say(f"{part.name}: cut off by --minutes, start again to go on here")
                    continue
                self.results[part.name] = result
                write_bytes(self._file(part, "json"), json.dumps(result, indent=1).encode())
                self.say(f"{part.name}: {_told(result)}")
                changed()
        return not any(r["status"] in (FAILED, TIMED_OUT) for r in self.results.values())

    @property
    def facts(self) -> dict[str, Any]:
        """What the part `machine` found; {} before it ran."""
        found: dict[str, Any] = self.results.get("machine", {}).get("figures", {})
        return found

    def log(self, part: Part) -> Path:
        """What a part printed."""
        return self._file(part, "log")

    def _kept(self, part: Part) -> bool:
        result = self.results.get(part.name, {})
        return (
            result.get("status") == MEASURED
            and not part.refresh
            and _same_machine(result["on"], _on(self.facts))
        )

    def _run(self, part: Part, left: float | None) -> Result | None:
        """The part's result; None where the day's time ended before its own."""
        if reason := self._why_not(part):
            return self._result(part, NOT_RUN, reason)
        limit = part.limit if left is None else min(part.limit, left)
        self.say(f"{part.name}: at most {limit:.0f} s")
        asked = {"task": part.task, "arguments": {**part.arguments, "folder": str(self.folder)}}
        site = str(self.folder / "site")
        start = time.monotonic()
        with GpuMonitor() if part.gpu else contextlib.nullcontext() as monitor:
            report = job.run(
                job.Job(
                    "gpu_day.runner:call", asked, limit=limit, first=site, log=str(self.log(part))
                )
            )
        seconds = time.monotonic() - start
        if "timed_out" in report and limit < part.limit:
            return None
        status, reason = MEASURED, ""
        for key, found in (("not_run", NOT_RUN), ("failed", FAILED), ("timed_out", TIMED_OUT)):
            if key in report:
                status, reason = found, report.get("not_run") or report["failed"]
        figures = {k: v for k, v in report.items() if k not in ("not_run", "failed", "timed_out")}
        figures |= monitor.figures if monitor else {}
        return self._result(part, status, reason, figures, seconds)

    def _why_not(self, part: Part) -> str:
        if part.gpu and not self.facts.get("seen"):
            return "no NVIDIA GPU was seen on this machine"
        for name in part.needs:
            status = self.results.get(name, {}).get("status", NOT_RUN)
            if status != MEASURED:
                return f"it needs the part '{name}', which is: {status}"
        return ""

    def _result(
        self, part: Part, status: str, reason: str, figures: Any = None, seconds: float = 0.0
    ) -> Result:
        figures = figures or {}
        facts = figures if part.name == "machine" else self.facts
        return {
            "part": part.name,
            "status": status,
            "reason": reason,
            "seconds": round(seconds, 1),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "on": _on(facts),
            "figures": figures,
        }

    def _file(self, part: Part, suffix: str) -> Path:
        return file_of(self.folder, part.name, suffix)


def file_of(folder: Path, part: str, suffix: str) -> Path:
    """Where a day keeps what a part found ("json") and said ("log")."""
    return folder / "parts" / f"{re.sub(r'[^A-Za-z0-9-]+', '-', part)}.{suffix}"


def call(
    *, threads: int | None, started: float, task: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """A task of `harness.job`, a part's: what is missing is "not run", what is wrong "failed"."""
    module, function = task.split(":")
    try:
        found: dict[str, Any] = getattr(importlib.import_module(module), function)(**arguments)
    except (MissingBackendError, ProviderError):
        raise
    except ClipSAMError as error:
        return {"failed": str(error)}
    return found


def _on(facts: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same for the figures of two runs to stand in one report."""
    return {name: facts.get(name) for name in ("cpu", "gpu", "driver", "commit", "libraries")}


def _same_machine(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Libraries may have been added since; none may have changed."""
    before, today = then["libraries"] or {}, now["libraries"] or {}
    same = {name: today.get(name) for name in before} == before
    return same and all(then[name] == now[name] for name in then if name != "libraries")


def _told(result: Result) -> str:
    reason = f": {result['reason']}" if result["reason"] else ""
    return f"{result['status']}{reason} ({result['seconds']:.0f} s)"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises OutputError where another run has the folder."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not try_lock(descriptor):
            raise OutputError(
                f"Another run works in {folder}: wait for it, or choose another --output."
            )
        yield
    finally:
        os.close(descriptor)
