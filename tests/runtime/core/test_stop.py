"""Programs that are told to stop."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from clipsam.runtime.core.stop import is_closed_pipe

SWALLOWED = """
import os, sys
from clipsam.runtime.core.stop import check_told, heed_stop_signals

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))

heed_stop_signals()
check_told()
Finalised()
print("the finaliser lost it", flush=True)
try:
    check_told()
finally:
    print("cleaned up", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_a_stop_that_a_finaliser_lost_comes_back_at_the_next_step(
    number: signal.Signals, code: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED, str(int(number))],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["the finaliser lost it", "cleaned up"]
    assert done.returncode == code


@pytest.mark.parametrize(("platform", "closed"), [("win32", True), ("linux", False)])
def test_a_closed_pipe_is_einval_on_windows_alone(
    platform: str, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert is_closed_pipe(OSError(errno.EINVAL, "Invalid argument")) == closed
    assert is_closed_pipe(BrokenPipeError())
    assert not is_closed_pipe(OSError(errno.ENOSPC, "No space left on device"))
