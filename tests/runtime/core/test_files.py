"""Files that are written whole or not at all, and read only where they are files."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clipsam.runtime.core.errors import DiskFullError
from clipsam.runtime.core.files import TEMPORARY, open_regular, write_bytes, write_with


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_gets_the_mode_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from clipsam.runtime.core.files import write_bytes\n"
        "os.umask(int(sys.argv[1]))\n"
        "write_bytes(Path(sys.argv[2]), b'x')"
    )
    path = tmp_path / "a"
    subprocess.run([sys.executable, "-c", code, str(mask), str(path)], check=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_the_process_keeps_its_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it means setting it: a file that another thread makes meanwhile is open to all."""

    def umask(_: int) -> int:
        raise AssertionError("the umask of the process was set")

    monkeypatch.setattr(os, "umask", umask)
    write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / ("n" * 200)
    path.write_bytes(b"old")
    with pytest.raises(DiskFullError, match="No space left on device"):
        write_with(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_only_regular_files_within_a_size_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    with open_regular(path, 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(OSError, match="It has 5 bytes, over the limit of 4"):
        open_regular(path, 4)
    with pytest.raises(OSError, match="Not a regular file"):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="Not a regular file"):
        open_regular(Path(os.devnull))


def test_a_file_that_is_being_written_can_be_told_by_its_name(tmp_path: Path) -> None:
    """So that what a killed process left can be removed."""
    seen: list[str] = []
    write_with(tmp_path / "p.mask.png", lambda temporary: seen.append(temporary.name))
    assert re.fullmatch(re.escape(".p.mask.png") + TEMPORARY, seen[0])
