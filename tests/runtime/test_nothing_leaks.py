"""An inspection leaves nothing in the home folder and never asks the network for anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.toy_bundle import bright_square, build_toy_bundle

from clipsam.runtime.images.reader import write_png

# Native code looks names up and connects without Python noticing: these stand in front of libc's.
SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static void note(const char *what) {
    int file = open(getenv("NETWORK_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0) return;
    (void)!write(file, what, strlen(what));
    (void)!write(file, "\n", 1);
    close(file);
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
    note(node ? node : "getaddrinfo");
    return EAI_FAIL;
}
int connect(int fd, const struct sockaddr *address, socklen_t length) {
    note("connect");
    errno = ECONNREFUSED;
    return -1;
}
"""
INSPECT = (
    "from clipsam.runtime.cli import main\n"
    "import sys, time\n"
    "code = main(['inspect', *sys.argv[1:3], '--output', sys.argv[3]])\n"
    "time.sleep(1)\n"  # telemetry is sent from a thread of its own
    "sys.exit(code)\n"
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or not shutil.which("gcc"):
        pytest.skip("needs Linux and gcc")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(folder / "shim.c")]
    subprocess.run(command, check=True)
    return library


def _run(shim: Path, tmp_path: Path, code: str, *args: str) -> tuple[list[str], list[str]]:
    """What `code` left in a fresh home folder, and the hosts it asked for."""
    home, log = tmp_path / "home", tmp_path / "network"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**kept, "HOME": str(home), "LD_PRELOAD": str(shim), "NETWORK_LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    left = sorted(str(p.relative_to(home)) for p in home.rglob("*"))
    return left, log.read_text().split() if log.exists() else []


def test_the_shim_sees_native_lookups(shim: Path, tmp_path: Path) -> None:
    code = "import socket\ntry: socket.create_connection(('box.invalid', 80))\nexcept OSError: 0"
    assert _run(shim, tmp_path, code)[1] == ["box.invalid"]


def test_an_inspection_leaves_no_file_and_asks_no_host(shim: Path, tmp_path: Path) -> None:
    bundle = build_toy_bundle(tmp_path / "bundle")
    write_png(tmp_path / "part.png", bright_square())
    paths = (bundle, tmp_path / "part.png", tmp_path / "out")
    assert _run(shim, tmp_path, INSPECT, *map(str, paths)) == ([], [])
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("set_before", [None, "0"])
@pytest.mark.parametrize("package", ["runtime", "export"])
def test_telemetry_is_off_before_onnxruntime_can_be_imported(
    package: str, set_before: str | None
) -> None:
    code = f"import os, clipsam.{package}\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    if set_before:
        env["ORT_DISABLE_TELEMETRY"] = set_before
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_the_packages_import_onnxruntime_only_when_it_is_used() -> None:
    """Within functions: `clipsam.runtime` is imported by then, and telemetry off."""
    root, users = Path(__file__).parents[2], set()
    for package in ("runtime", "export", "research"):
        for path in (root / package).rglob("*.py"):
            for line in path.read_text().splitlines():
                if line.lstrip().startswith(("import onnxruntime", "from onnxruntime")):
                    assert line.startswith("    "), path
                    users.add((package, path.name))
    assert ("runtime", "session.py") in users
    assert {package for package, _ in users} <= {"runtime", "export"}
