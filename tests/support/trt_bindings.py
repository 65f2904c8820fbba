"""Make NVIDIA's TensorRT bindings importable without TensorRT, to test against their API.

    make trt-api                                  # the oldest and the newest TensorRT we are for
    python tests/support/trt_bindings.py build/trt-10.16 --version 10.16.0.72
    CLIPSAM_TRT_BINDINGS=build/trt-10.16 python -m pytest tests/runtime/backends/trt/test_api.py

The bindings are a wheel of about a megabyte that links to gigabytes of libraries. This downloads
the wheel and compiles stand-ins that have the symbols it asks for: their functions return nothing,
so every class can be looked at and nothing can run. Needs Linux, pip with a package index, gcc, nm
and readelf; neither the wheel nor the stand-ins belong in the repository.
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
MADE = "version.txt"  # written last, with the version
WHY_NOT = "why-not.txt"  # one line, where the bindings could not be had
VERSION = "11.4.0.106"
# What the interpreter and the C library have; everything else without a version is NVIDIA's.
_NOT_NVIDIAS = re.compile(r"_?Py|dl(open|sym|close|error)$|_ITM_|__gmon")


def make(folder: Path, version: str, package: str = "tensorrt-cu13-bindings") -> None:
    """Fill `folder` with the wheel's packages and stand-ins for its libraries."""
    packages, libraries = folder / PACKAGES, folder / LIBRARIES
    for path in (packages, libraries):
        path.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    pip += ["--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
    _output(*pip, "--only-binary=:all:", "--dest", str(folder), f"{package}=={version}")
    for path in folder.glob(f"*bindings-{version}-*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(packages)
    (module,) = packages.glob("tensorrt_bindings/tensorrt*.so")
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols(module)))
    for name in needed(module):
        target = str(libraries / name)
        _output("gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", target, str(source))
    (folder / MADE).write_text(version)


def try_to_make(folder: Path, version: str) -> str | None:
    """`make`, unless it is there already; why it cannot be, in a line, which is kept too."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MADE).is_file() and (folder / MADE).read_text() == version:
        return None
    try:
        make(folder, version)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines() or ["it gave no reason"]
        reason = f"{Path(error.cmd[0]).name} {' '.join(error.cmd[1:4])}: {said[-1]}"
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error)
    else:
        (folder / WHY_NOT).unlink(missing_ok=True)
        return None
    (folder / WHY_NOT).write_text(reason)
    return reason


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
    parser.add_argument("--package", default="tensorrt-cu13-bindings", help="default: %(default)s")
    parser.add_argument(
        "--optional", action="store_true", help=f"leave the reason in {WHY_NOT} where it cannot be"
    )
    options = parser.parse_args()
    if not options.optional:
        make(options.folder, options.version, options.package)
    elif reason := try_to_make(options.folder, options.version):
        print(f"no TensorRT {options.version} bindings: {reason}", file=sys.stderr)
