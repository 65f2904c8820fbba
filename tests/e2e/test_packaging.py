"""The wheel holds every module: flat folders mapped by hand are easily forgotten."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "export", "research")


def in_wheel(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.name != ".DS_Store"


def test_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if in_wheel(path):
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    wanted = {
        f"clipsam/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if in_wheel(path)
    }
    assert names == wanted


def test_no_module_carries_the_name_of_a_dependency_or_of_the_standard_library() -> None:
    # A script puts its own folder first on the path: export/trace.py would hide the library's.
    taken = set(sys.stdlib_module_names) | {"onnx", "onnxruntime", "tensorrt", "torch", "numpy"}
    for package in PACKAGES:
        clashes = {p.stem for p in (ROOT / package).rglob("*.py")} & (taken - {"__init__"})
        assert not clashes, f"{package}: {sorted(clashes)}"
