"""Logging is Python's, and quiet unless a program asks for it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from clipsam.runtime.core.log import get_logger, log_to_stderr


def test_a_library_prints_no_warning_by_itself() -> None:
    code = "from clipsam.runtime.core.log import get_logger; get_logger('x').warning('{}', 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_command_prints_what_is_logged_and_only_meanwhile(
    capsys: pytest.CaptureFixture[str],
) -> None:
    level = logging.getLogger("clipsam").level
    with log_to_stderr():
        get_logger("results").error("it broke")
        get_logger("results").warning("%s is odd", "this")
        get_logger().info("all is well")
    with log_to_stderr(logging.INFO):
        get_logger().info("all is well")
    get_logger().error("after it")
    assert capsys.readouterr().err == "error: it broke\nnote: this is odd\ninfo: all is well\n"
    assert logging.getLogger("clipsam").level == level
