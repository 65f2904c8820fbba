"""A job's process answers, says what is missing, or says why it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import job
from harness.report import table


def report_of(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The report of a process whose task is written here."""
    (tmp_path / "our_task.py").write_text(
        "import os, sys\n"
        "def answer(*, threads, started, what):\n"
        "    return {'said': what, 'threads': os.environ['OMP_NUM_THREADS'], 'noise': print('x')}\n"
        "def absent(*, threads, started):\n"
        "    import no_such_module\n"
        "def refused(*, threads, started):\n"
        "    from clipsam.runtime.core.errors import ClipSAMError\n"
        "    raise ClipSAMError('It is not here.')\n"
        "def broken(*, threads, started):\n"
        "    raise ValueError('a reason')\n"
        "def killed(*, threads, started):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = {"what": [1, None]} if task == "answer" else {}
    return job.run(job.Job(f"our_task:{task}", arguments, threads=1))


@pytest.mark.parametrize(
    ("task", "status"),
    [
        ("absent", "not run: no_such_module is not installed."),
        ("refused", "not run: It is not here."),
        ("broken", "failed: exit code 1: ValueError: a reason"),
        ("killed", "failed: exit code -9: no message (killed: most likely out of memory)"),
    ],
)
def test_a_job_without_an_answer_says_why(
    task: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job.status(report_of(task, tmp_path, monkeypatch)) == status


def test_an_answer_comes_with_the_peak_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report_of("answer", tmp_path, monkeypatch)
    assert (found["said"], found["threads"]) == ([1, None], "1")
    assert 5 < found["peak_rss_mb"] < 200  # nothing is imported that the task does not ask for
    assert job.status(found) == "measured"


def test_a_tables_columns_are_aligned() -> None:
    assert table(["name", "ms"], [["a", 1.5]]).splitlines() == [
        "| name |  ms |",
        "| ---- | --: |",
        "| a    | 1.5 |",
    ]
