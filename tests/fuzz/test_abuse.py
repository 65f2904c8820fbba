"""A few of the malformed requests, and that a wrong answer is seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ABUSE = Path(__file__).with_name("abuse.py")

pytestmark = [
    pytest.mark.slow,  # a minute, of which most is waiting
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"),
]


def run(*args: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(ABUSE.parent)!r}); import abuse\n{code}\n"
    command = [sys.executable, "-c", program + "sys.exit(abuse.main())"]
    return subprocess.run([*command, *args], capture_output=True, text=True, timeout=300)


def test_malformed_requests_are_answered_as_they_should_be() -> None:
    pytest.importorskip("uvicorn", reason="needs pip install 'clipsam[serve]'")
    # Memory settles over thousands of requests: that is the long run's to say.
    done = run("--count", "300", code="abuse.MOST_MB = 1000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 requests of seed 0" in done.stdout
    assert ", 0 wrong;" in done.stdout


def test_an_answer_that_is_not_allowed_is_seen() -> None:
    pytest.importorskip("uvicorn", reason="needs pip install 'clipsam[serve]'")
    done = run("--count", "20", code="abuse.KINDS[abuse.bomb] = {'200'}; abuse.MOST_MB = 1000")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG: {'422': 2}" in done.stdout
