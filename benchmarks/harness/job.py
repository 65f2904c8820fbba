"""A piece of a benchmark in a process of its own.

So a cold start is one, a peak of memory belongs to one row, and a row that takes its process down
takes nothing else with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """A function to call in a fresh process.

    Attributes:
      task: "module:function", importable from benchmarks/; it is called with `arguments`,
        `threads` and `started` by keyword, and returns an object that JSON can hold.
      arguments: values that JSON can hold.
      threads: CPU threads, also of BLAS and OpenMP; None for all cores.
      keep_pages: glibc's malloc keeps what is freed (see `memory.keep_freed_pages`).
    """

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    keep_pages: bool = False


def run(job: Job) -> dict[str, Any]:
    """The task's answer, with the process's `peak_rss_mb`.

    {"not_run": reason} where something is not installed or not there, {"failed": reason} when the
    process did not come back with an answer.
    """
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(BENCHMARKS), environment.get("PYTHONPATH")))
    )
    if job.threads is not None:  # BLAS reads these when it is imported
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(job.threads)
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps({**asdict(job), "started": time.monotonic()}))
        done = subprocess.run(
            [sys.executable, "-m", "harness.child", str(asked), str(answer)],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
        )
        if done.returncode == 0 and answer.exists():
            found: dict[str, Any] = json.loads(answer.read_text())
            return found
    words = done.stderr.strip().splitlines()
    why = f"exit code {done.returncode}: {words[-1] if words else 'no message'}"
    if done.returncode == -9:
        why += " (killed: most likely out of memory)"
    return {"failed": why}


def status(report: Mapping[str, Any]) -> str:
    """ "measured", "not run: reason" or "failed: reason"."""
    for problem in ("not_run", "failed"):
        if problem in report:
            return f"{problem.replace('_', ' ')}: {report[problem]}"
    return "measured"
