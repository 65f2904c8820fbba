"""A few cases of the fuzzer, and that it sees what it is there to see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")


def _fuzz(folder: Path, *args: str, code: str = "") -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(FUZZ.parent)!r}); import fuzz\n{code}\n"
    command = [sys.executable, "-c", program + "sys.exit(fuzz.main())"]
    return subprocess.run(
        [*command, *args, "--folder", str(folder)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("target", ["images", "manifests", "bundles", "results"])
def test_mutated_files_raise_nothing_but_our_own_errors(target: str, tmp_path: Path) -> None:
    done = _fuzz(tmp_path, target, "--count", "120", "--seconds", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / f"{target}-0.json").read_text())["next"] == 120
    assert "0 wrong" in done.stdout


@pytest.mark.parametrize(
    ("bad", "how"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("\n  while True: pass", "HANG"),
        ("bytearray(3 << 30)", "MemoryError"),
        ("import os; os.abort()", "KILLED"),
    ],
)
def test_what_goes_wrong_is_kept_and_the_run_goes_on(bad: str, how: str, tmp_path: Path) -> None:
    code = (
        "fuzz.HANG_S = 1\nrun = fuzz.Images.run\n"
        "def once(self, draw):\n"
        " if draw.getstate() == __import__('random').Random('images 0 3').getstate():\n"
        f"  {bad.strip()}\n"
        " return run(self, draw)\n"
        "fuzz.Images.run = once"
    )
    done = _fuzz(tmp_path, "images", "--count", "10", "--seconds", "100", code=code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert how in (tmp_path / "images-0-3.txt").read_text()
    assert json.loads((tmp_path / "images-0.json").read_text())["next"] == 10
