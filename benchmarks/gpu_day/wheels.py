"""What is missing, from a folder of wheels: no index is asked, and no environment is changed.

Everything in the folder goes into one of our own, which comes first on the parts' path. So
`onnxruntime-gpu` needs no `pip uninstall onnxruntime`, and deleting the folder undoes it all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".whl", ".tar.gz")
# NVIDIA's source archives of TensorRT otherwise ask NVIDIA's index by themselves.
_OFFLINE = {"NVIDIA_TENSORRT_DISABLE_INTERNAL_PIP": "1", "PIP_NO_INDEX": "1"}


def archives(folder: Path) -> list[Path]:
    """The wheels and source archives of a folder; wheels first, which need no building."""
    found = (path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    return sorted(found, key=lambda path: (path.suffix != ".whl", path.name))


def install(folder: str, target: str) -> dict[str, Any]:
    """The figures of the part `wheels`: every archive on its own, so that one that does not fit
    this machine keeps none of the others out. What was installed before is not installed again."""
    installed, refused = [], {}
    done = Path(target) / ".installed"
    for path in archives(Path(folder)):
        mark = done / path.name
        if mark.exists():
            installed.append(path.name)
            continue
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
            "--no-build-isolation", "--find-links", folder, "--upgrade", "--target", target,
            str(path),
        ]  # fmt: skip
        code, said = _pip(command)
        if code == 0:
            done.mkdir(parents=True, exist_ok=True)
            mark.touch()
            installed.append(path.name)
        else:
            refused[path.name] = said
    return {"installed": installed, "refused": refused}


def _pip(command: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env={**os.environ, **_OFFLINE}
    )
    words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return done.returncode, (words or [done.stderr.strip() or "no message"])[0][:300]
