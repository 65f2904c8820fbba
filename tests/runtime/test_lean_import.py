"""The runtime on a box: no torch, no onnx, no Pillow, and no engine before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.blocked import BLOCK
from support.toy_bundle import bright_square

import clipsam.runtime
from clipsam.runtime.commands import COMMANDS
from clipsam.runtime.images.reader import write_png

RESEARCH = ("torch", "torchvision", "onnx", "PIL", "tqdm", "open_clip", "segment_anything")


# Runs first in the subprocess: importing one of these fails, and so does having imported one.
def run(code: str, blocked: tuple[str, ...], *args: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter that cannot import `blocked`."""
    program = f"BLOCKED = {blocked!r}\n{BLOCK}\n{code}\n"
    program += "assert not set(BLOCKED) & {name.split('.')[0] for name in sys.modules}\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("module", ["clipsam.runtime", "clipsam.runtime.cli"])
def test_imports_with_numpy_and_opencv_alone(module: str) -> None:
    done = run(f"import {module}", (*RESEARCH, "onnxruntime", "tensorrt"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_runtimes_tests_are_collected_without_torch() -> None:
    """They run on boxes that have the extra `test` alone; what compares with PyTorch skips."""
    code = "import pytest\nassert pytest.main(['--collect-only', '--quiet', sys.argv[1]]) == 0"
    blocked = ("torch", "torchvision", "onnxscript", "open_clip", "segment_anything")
    done = run(code, blocked, str(Path(__file__).parent))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{Path(__file__).name}::" in done.stdout


def test_everything_of_the_public_face_is_there_without_an_engine() -> None:
    code = "from clipsam.runtime import *\nprint(*sorted(set(dir()) & set(sys.argv[1:])))"
    names = sorted(clipsam.runtime.__all__)
    done = run(code, (*RESEARCH, "onnxruntime", "tensorrt"), *names)
    assert (done.stdout.split(), done.stderr) == (names, "")
    assert {"ClipSAM", "overlay", "read_image", "write_png", "write_score_tiff"} <= set(names)


def test_the_blocker_of_imports_works() -> None:
    done = run("import PIL", RESEARCH)
    assert done.returncode != 0
    assert "PIL is blocked" in done.stderr


# What onnxruntime's package asks for and its engine does not import: left out of a lean install.
UNUSED = ("google", "flatbuffers", "packaging", "sympy")


@pytest.mark.parametrize("blocked", [RESEARCH, (*RESEARCH, *UNUSED)], ids=["research", "unused"])
def test_an_inspection_imports_nothing_of_research(
    toy: Path, tmp_path: Path, blocked: tuple[str, ...]
) -> None:
    write_png(tmp_path / "part.png", bright_square())
    code = (
        "from clipsam.runtime.cli import main\n"
        "assert main(['inspect', *sys.argv[1:3], '--output', sys.argv[3]]) == 0"
    )
    done = run(code, blocked, str(toy), str(tmp_path / "part.png"), str(tmp_path / "out"))
    assert done.stderr == ""
    assert done.returncode == 0
    assert "0 good, 1 anomalous" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_info_needs_no_engine(toy: Path) -> None:
    code = "from clipsam.runtime.cli import main\nassert main(['info', sys.argv[1]]) == 0"
    done = run(code, (*RESEARCH, "onnxruntime"), str(toy))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("toy  (bundle ")


def test_no_engine_names_the_extra(toy: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "part.png", bright_square())
    code = (
        "from clipsam.runtime.cli import main\n"
        "assert main(['inspect', *sys.argv[1:3], '--output', sys.argv[3]]) == 1"
    )
    output = tmp_path / "out"
    done = run(code, ("onnxruntime",), str(toy), str(tmp_path / "part.png"), str(output))
    assert done.returncode == 0, done.stderr
    message = "error: Provider 'cpu' needs onnxruntime: pip install 'clipsam[ort]'.\n"
    assert done.stderr == message
    assert not output.exists()


HEAVY = ("torch", "onnx", "open_clip", "tqdm", "sklearn", "PIL")


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.extra])
def test_a_command_without_its_libraries_names_the_extra(name: str) -> None:
    code = (
        "from clipsam.runtime.cli import main\n"
        "for arguments in (['--help'], ['x', 'y']):\n"
        "    try:\n"
        "        assert main([sys.argv[1], *arguments]) == 1\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code in (0, 2)"
    )
    done = run(code, HEAVY, name)
    assert done.returncode == 0, done.stderr
    if "usage" not in done.stdout:  # what needs none of them to print its help may do so
        assert f"`clipsam {name}` needs " in done.stderr
        assert f"pip install 'clipsam[{COMMANDS[name].extra}]'.\n" in done.stderr


def test_the_list_of_commands_and_the_version_need_no_engine() -> None:
    code = (
        "from clipsam.runtime.cli import main\n"
        "for flag in ('--help', '--version'):\n"
        "    try:\n"
        "        main([flag])\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0\n"
    )
    done = run(code, (*RESEARCH, "onnxruntime", "tensorrt"))
    assert (done.returncode, done.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert f"\n  {name:15} {command.help}" in done.stdout
    assert done.stdout.endswith(f"\nclipsam {clipsam.runtime.__version__}\n")


@pytest.mark.parametrize("users", [None, "20"])
def test_numpys_idle_threads_stop_at_once_unless_told_otherwise(users: str | None) -> None:
    """OpenBLAS reads the variable when NumPy is first imported, so it has to be there by then."""
    code = """
import os, sys
class See:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print(os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
sys.meta_path.insert(0, See())
import clipsam.runtime
clipsam.runtime.ClipSAM
"""
    kept = {k: v for k, v in os.environ.items() if k != "OPENBLAS_THREAD_TIMEOUT"}
    if users:
        kept["OPENBLAS_THREAD_TIMEOUT"] = users
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=kept)
    assert done.stdout.split() == [users or "4"], done.stderr


def test_a_bundle_is_evaluated_without_torch() -> None:
    pytest.importorskip("sklearn")
    code = "from clipsam.research.evaluate import main\nmain(['--help'])"
    blocked = tuple(name for name in RESEARCH if name != "tqdm")
    done = run(code, (*blocked, "open_clip", "segment_anything"))
    assert done.returncode == 0, done.stderr
    assert "--calibration" in done.stdout
