"""Make NVIDIA's TensorRT bindings importable without TensorRT, to test against their API.

    python tests/trt_bindings.py build/trt-11 --version 11.4.0.106
    CLIPSAM_TRT_BINDINGS=build/trt-11 python -m pytest tests/test_trt_api.py

The bindings are a wheel of about a megabyte that links to gigabytes of libraries. This downloads
the wheel and compiles stand-ins that have the symbols it asks for: their functions return nothing,
so every class can be looked at and nothing can run. Needs gcc, nm and readelf; neither the wheel
nor the stand-ins belong in the repository.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

VARIABLE = "CLIPSAM_TRT_BINDINGS"
PACKAGES, LIBRARIES = "packages", "libraries"
VERSION = "11.4.0.106"
# What the interpreter and the C library have; everything else without a version is NVIDIA's.
_NOT_NVIDIAS = re.compile(r"_?Py|dl(open|sym|close|error)$|_ITM_|__gmon")


def make(folder: Path, version: str) -> None:
    """Fill `folder` with the wheel's packages and stand-ins for its libraries."""
    packages, libraries = folder / PACKAGES, folder / LIBRARIES
    for path in (packages, libraries):
        path.mkdir(parents=True, exist_ok=True)
    wheel = f"tensorrt-cu13-bindings=={version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", str(folder), wheel], check=True)
    for path in folder.glob(f"*bindings-{version}-*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(packages)
    (module,) = packages.glob("tensorrt_bindings/tensorrt*.so")
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols(module)))
    for name in needed(module):
        target = str(libraries / name)
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", target, str(source)]
        subprocess.run(command, check=True)


def symbols(module: Path) -> list[str]:
    """Functions that the module expects of NVIDIA's libraries."""
    listed = _output("nm", "--dynamic", "--undefined-only", "--format=posix", str(module))
    rows = (line.split()[:2] for line in listed.splitlines())
    undefined = (name for name, kind in rows if kind == "U")  # weak ones may stay undefined
    return [name for name in undefined if "@" not in name and not _NOT_NVIDIAS.match(name)]


def needed(module: Path) -> list[str]:
    """NVIDIA's libraries among those the module is linked to."""
    listed = _output("readelf", "--dynamic", "--wide", str(module))
    return re.findall(r"\(NEEDED\).*\[(libnv\w+\.so[.\d]*)\]", listed)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="TensorRT's bindings, importable without TensorRT")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--version", default=VERSION, help=f"default: {VERSION}")
    options = parser.parse_args()
    make(options.folder, options.version)
