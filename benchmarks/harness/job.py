"""A piece of a benchmark in a process of its own.

So a cold start is one, a peak of memory belongs to one row, and a row that takes its process down
takes nothing else with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
_PATIENCE = 15.0  # seconds between Ctrl-C and the end


@dataclass(frozen=True)
class Job:
    """A function to call in a fresh process.

    Attributes:
      task: "module:function", importable from benchmarks/; it is called with `arguments`,
        `threads` and `started` by keyword, and returns an object that JSON can hold.
      arguments: values that JSON can hold.
      threads: CPU threads, also of BLAS and OpenMP; None for all cores.
      keep_pages: glibc's malloc keeps what is freed (see `memory.keep_freed_pages`).
      limit: seconds after which it and whatever it started are ended; None for no limit.
      first: a folder whose packages come before the installed ones.
      log: a file for what it prints; None: it is dropped.
    """

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    keep_pages: bool = False
    limit: float | None = None
    first: str = ""
    log: str = ""


def run(job: Job) -> dict[str, Any]:
    """The task's answer, with the process's `peak_rss_mb`.

    {"not_run": reason} where something is not installed or not there, {"failed": reason} when the
    process did not come back with an answer, and then "timed_out" where it ran past its limit.
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(BENCHMARKS), job.first, environment.get("PYTHONPATH")))
    )
    if job.threads is not None:  # BLAS reads these when it is imported
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(job.threads)
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps({**asdict(job), "started": time.monotonic()}))
        command = [sys.executable, "-u", "-m", "harness.child", str(asked), str(answer)]
        log = Path(job.log) if job.log else Path(folder) / "log"
        code = _run(command, environment, log, job.limit)
        if code == 0 and answer.exists():
            found: dict[str, Any] = json.loads(answer.read_text())
            return found
        words = log.read_text(errors="replace").strip().splitlines()
    if code is None:
        return {"failed": f"it ran past its limit of {job.limit:.0f} s", "timed_out": True}
    why = f"exit code {code}: {words[-1] if words else 'no message'}"
    if code == -9:
        why += " (killed: most likely out of memory)"
    return {"failed": why}


def _run(
    command: list[str], environment: dict[str, str], log: Path, limit: float | None
) -> int | None:
    """The exit code, None past the limit. Nothing that was started outlives this call."""
    with log.open("wb") as said:
        # With a limit a session of its own: what it starts can be ended with it.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            env=environment, start_new_session=limit is not None,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if limit is not None:
                _end(process)
            elif process.poll() is None:
                process.kill()
                process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its session: politely, so that a build keeps what it measured."""
    for how, patience in ((signal.SIGINT, _PATIENCE), (signal.SIGKILL, None)):
        if how == signal.SIGINT and process.poll() is not None:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:  # somebody who does not want to wait for politeness
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def status(report: Mapping[str, Any]) -> str:
    """ "measured", "not run: reason" or "failed: reason"."""
    for problem in ("not_run", "failed"):
        if problem in report:
            return f"{problem.replace('_', ' ')}: {report[problem]}"
    return "measured"
