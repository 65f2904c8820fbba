"""The rows' processes (`cpu_row.py`): started, asked in turn, and ended where memory is short."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from cpu_row import CpuJob
from latency_row import to_json

SCRIPT = Path(__file__).resolve().parent / "cpu_row.py"
_END_SECONDS = 30  # that a process is given to end by itself
_SHARE = 0.8  # of the memory that is free when the benchmark starts


class RowError(Exception):
    """Why a row cannot go on; `failed` says whether it should have been able to."""

    def __init__(self, why: str, failed: bool) -> None:
        super().__init__(why)
        self.failed = failed

    @property
    def status(self) -> str:
        """For the CSV."""
        return f"{'failed' if self.failed else 'not run'}: {self}"


class Worker:
    """One row's process. Raises RowError when it does not load or does not answer."""

    def __init__(self, job: CpuJob) -> None:
        environment = dict(os.environ)
        if job.threads is not None:  # BLAS reads these when it is imported
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                environment[name] = str(job.threads)
        self._folder = tempfile.TemporaryDirectory()
        asked = Path(self._folder.name) / "job.json"
        asked.write_text(to_json(replace(job, started=time.monotonic())))
        self._errors = (Path(self._folder.name) / "stderr").open("w+", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        try:
            first = self._read()
            if "not_run" in first:
                raise RowError(str(first["not_run"]), failed=False)
        except BaseException:
            self.close(at_once=True)
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request; see `cpu_row.answers`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why it ended, reading says
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.endswith("\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        code = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().strip().splitlines()
        why = f"exit code {code}: {words[-1] if words else 'no message'}"
        if code == -9:
            why += " (killed: most likely out of memory)"
        raise RowError(why, failed=True)

    def close(self, at_once: bool = False) -> None:
        """End the process; `at_once` without waiting for what it does."""
        if at_once:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        self._folder.cleanup()


class Team:
    """Rows that take turns; as many of their processes live as fit in `budget_mb` together.

    Attributes:
      problems: rows that cannot go on.
      starts: what every start of a row's process measured.
      peaks_mb: the most memory that a row has used.
    """

    def __init__(
        self,
        jobs: Mapping[str, CpuJob],
        budget_mb: float,
        worker: Callable[[CpuJob], Any] = Worker,
    ) -> None:
        self.jobs, self.budget_mb, self._worker = dict(jobs), budget_mb, worker
        self.problems: dict[str, RowError] = {}
        self.starts: dict[str, list[dict[str, float]]] = {row: [] for row in jobs}
        self.peaks_mb: dict[str, float] = {}
        self._alive: dict[str, Any] = {}  # the one asked last is last
        self._rss_mb: dict[str, float] = {}

    def ask(
        self, row: str, warm_up: Mapping[str, Any] | None = None, **request: Any
    ) -> dict[str, Any] | None:
        """A row's answer, or None when it cannot go on. `warm_up` goes before, and is dropped,
        when its process is started for this."""
        if row in self.problems:
            return None
        try:
            if row not in self._alive:
                self._start(row)
                if warm_up is not None:
                    self._ask(row, **warm_up)
            return self._ask(row, **request)
        except RowError as error:
            self.problems[row] = error
            if row in self._alive:
                self._alive.pop(row).close(at_once=True)
            return None

    def start_again(self, row: str) -> None:
        """Start the row's process anew, to measure that."""
        if row in self.problems:
            return
        self.end(row)
        try:
            self._start(row)
        except RowError as error:
            self.problems[row] = error

    def end(self, row: str) -> None:
        """End the row's process, if it lives."""
        if row in self._alive:
            self._alive.pop(row).close()

    def _start(self, row: str) -> None:
        self._make_room(row)
        self._alive[row] = self._worker(self.jobs[row])
        if self.jobs[row].kind != "matrix":
            self.starts[row].append(self._ask(row, ask="first"))

    def _ask(self, row: str, **request: Any) -> dict[str, Any]:
        self._make_room(row)
        worker = self._alive[row] = self._alive.pop(row)
        reply: dict[str, Any] = worker.ask(**request)
        self._rss_mb[row] = reply["rss_mb"]
        self.peaks_mb[row] = max(reply["peak_rss_mb"], self.peaks_mb.get(row, 0))
        return reply

    def _make_room(self, row: str) -> None:
        """End those asked longest ago until the row's peak fits; one not known has no limit."""
        need = self.peaks_mb.get(row, self.budget_mb)
        others = [name for name in self._alive if name != row]
        while others and need + sum(self._rss_mb.get(name, 0) for name in others) > self.budget_mb:
            self.end(others.pop(0))

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._alive.values():
            worker.close(at_once=True)
        self._alive.clear()


def free_memory_mb() -> float:
    """What the rows may use together: most of what is available now (Linux)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return _SHARE * int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/meminfo does not say what is available: give --memory-gb.")
