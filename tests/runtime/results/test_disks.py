"""Real file systems that are full or read-only, several processes, and a clock that jumps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli_run import NAMES, Run, lines, listing


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB: room for the files of one or two pictures."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or _mount("-t", "tmpfs", "-o", "size=128k", "tmpfs", place):
        pytest.skip("may not mount a file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _mount(*arguments: object) -> int:
    return subprocess.run(["mount", *map(str, arguments)], stderr=subprocess.DEVNULL).returncode


def test_a_full_disk_is_one_sentence_and_resume_goes_on(run: Run, images: Path, disk: Path) -> None:
    output = disk / "out"
    done = run(images, "--output", output)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "(No space left on device): free some space, or choose another folder." in done.err
    before = [row["image"] for row in lines(output)]
    assert before == NAMES[: len(before)]
    assert len(before) < 4
    assert _mount("-o", "remount,size=8m", disk) == 0
    assert run(images, "--output", output, "--resume").code == 0
    assert [row["image"] for row in lines(output) if "verdict" in row] == NAMES
    assert len(listing(output)) == 13


def test_a_read_only_folder_is_one_sentence(run: Run, images: Path, disk: Path) -> None:
    (disk / "out").mkdir()
    assert _mount("-o", "remount,ro", disk) == 0
    for output in (disk / "out", disk / "new/deep"):
        done = run(images, "--output", output)
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            f"error: {output / 'results.jsonl'} could not be written (Read-only file system): "
            "allow that, or choose another folder.\n"
        )


@pytest.mark.parametrize("count", [2, 4])
def test_of_several_processes_one_writes_and_nothing_is_lost(
    toy: Path, images: Path, tmp_path: Path, count: int
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "clipsam.runtime.cli", "inspect", str(toy), str(images)]
    command += ["--output", str(output), "--resume", "--threads", "1"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    refused = f"error: {output / 'results.jsonl'} is being written by another inspection: "
    codes = []
    for process in running:
        _, err = process.communicate()
        codes.append(process.returncode)
        assert (process.returncode, err) == (0, "") or err.startswith(refused)
    assert 0 in codes
    assert [row["image"] for row in lines(output)] == NAMES
    assert len(listing(output)) == 13


def test_a_clock_that_jumps_changes_no_answer(run: Run, images: Path, tmp_path: Path) -> None:
    for name, seconds in zip(NAMES, (0, 1, 4_000_000_000, 7_000_000_000), strict=True):
        os.utime(images / name, (seconds, seconds))
    assert run(images, "--output", tmp_path / "out").out.startswith("2 good, 2 anomalous;")
    for path in (*images.rglob("*.*"), *(tmp_path / "out").rglob("*.*")):
        os.utime(path, (2_000_000_000, 2_000_000_000))
    done = run(images, "--output", tmp_path / "out", "--resume")
    assert done.out.startswith("0 good, 0 anomalous, 4 done before;")
