"""The `clipsam` command when something is wrong: one sentence, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
from PIL import Image
from support.cli_run import NAMES, Ran, Run, lines, listing

from clipsam.runtime.cli import main
from clipsam.runtime.results.index import row_line


def test_a_bad_image_does_not_stop_the_good_ones(run: Run, images: Path, tmp_path: Path) -> None:
    (images / "cut.png").write_bytes((images / "bad.png").read_bytes()[:200])
    done = run(images, tmp_path / "missing.png", "--output", tmp_path / "out")
    assert done.code == 3
    assert done.out.startswith("2 good, 2 anomalous, 2 not judged; results in ")
    first, second = done.err.splitlines()
    assert first.startswith(f"error: {images / 'cut.png'} is truncated")
    assert second.startswith(f"error: {tmp_path / 'missing.png'} cannot be read")
    rows = {row["image"]: row for row in lines(tmp_path / "out")}
    assert len(rows) == 6
    assert f"error: {rows['cut.png']['error']}" == first
    for name, reason in (("cut.png", "damaged"), ("missing.png", "unreadable")):
        assert (rows[name]["verdict"], rows[name]["reasons"]) == ("not_judged", [reason])
    assert not [name for name in listing(tmp_path / "out") if name.startswith(("cut", "missing"))]


def test_an_unknown_category_writes_nothing(run: Run, images: Path, tmp_path: Path) -> None:
    done = run(images, "--output", tmp_path / "out", "--category", "metalnut")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: The bundle does not know the category 'metalnut'; did you ")
    assert "'metal nut'" in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_an_error(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "folder.png").mkdir(parents=True)  # a folder is no image, whatever its name
    done = run(empty, "--output", tmp_path / "out")
    assert done.code == 1
    assert done.err.startswith(f"error: {empty} holds no image (.png, .jpg")
    assert not (tmp_path / "out").exists()


def test_a_missing_bundle_is_an_error_and_writes_nothing(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(["inspect", str(tmp_path / "no"), str(images), "--output", str(tmp_path / "out")])
    assert code == 1
    assert capfd.readouterr().err.startswith("error: There is no bundle in ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/out", "results.jsonl is a folder"])
def test_an_output_that_cannot_be_written(
    run: Run, images: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("keep me")
    output = tmp_path / place
    if place.startswith("results"):
        (output / "results.jsonl").mkdir(parents=True)
    done = run(images, "--output", output)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {output}")
    assert done.err.endswith("allow that, or choose another folder.\n")
    assert done.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "keep me"
    assert not [n for n in listing(tmp_path) if n.startswith(".") or ".results" in n]


@pytest.mark.parametrize("room", range(0, 9))
def test_a_full_disk_leaves_whole_files_and_resume_goes_on(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """After `room` files nothing more fits: what is there is whole, and --resume goes on."""
    output = tmp_path / "out"
    written: list[Path] = []
    real = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        if len(written) >= room:
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        done = run(images, "--output", output)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {output}/")
    assert "(No space left on device): free some space, or" in done.err
    assert done.err.count("\n") == 1
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]
    _all_whole(output)
    done = run(images, "--output", output, "--resume")
    assert done.code == 0
    assert sorted(row["image"] for row in lines(output) if "verdict" in row) == NAMES
    assert len(listing(output)) == 13


def test_a_disk_too_full_for_a_row_is_told(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that does not fit is not left half-written, and the next run goes on."""
    output, real, room = tmp_path / "out", os.write, [1000]

    def write(descriptor: int, data: bytes) -> int:
        if os.fstat(descriptor).st_ino != (output / "results.jsonl").stat().st_ino:
            return real(descriptor, data)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        done = run(images, "--output", output)
    assert done.code == 1
    assert "results.jsonl could not be written (No space left on device)" in done.err
    assert done.err.count("\n") == 1
    assert run(images, "--output", output, "--resume").code == 0
    assert sorted(row["image"] for row in lines(output) if "verdict" in row) == NAMES


def _all_whole(output: Path) -> None:
    for path in output.rglob("*.png"):
        with Image.open(path) as file:
            file.load()
    for path in output.rglob("*.tiff"):
        tifffile.imread(path)
    assert all(row.get("verdict") in ("good", "anomalous") for row in lines(output))


def test_resume_keeps_whole_lines_and_does_the_rest(run: Run, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(images, "--output", output)
    path = output / "results.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    # One line gone, one cut off, garbage, and an error of last time.
    ok = {"image": "line 1/äöü/ok.tiff", "stem": "line 1/äöü/ok"}
    error = row_line({**ok, "error": "was damaged"})
    torn = json.loads(kept[2])
    journal = {torn["stem"]: torn["image"]}  # as a process that is killed leaves it
    (output / "results.jsonl.journal").write_text(json.dumps(journal))
    junk = b"\xff\xfe\n[1]\n{}\n" + b'{"image": ["x"]}\n'
    whole = (kept[0] + kept[1]).encode() + error + junk
    path.write_bytes(whole + kept[2][:80].encode())
    before = {p: p.stat().st_mtime_ns for p in output.glob("*.png")}
    done = run(images, "--output", output, "--resume")
    assert (done.code, done.out[:34]) == (0, "1 good, 1 anomalous, 2 done before")
    assert done.err == f"note: {path} has damaged lines (4), which count for nothing.\n"
    assert {p: p.stat().st_mtime_ns for p in output.glob("*.png")} == before
    assert path.read_bytes().startswith(whole)
    new = map(json.loads, path.read_bytes()[len(whole) :].splitlines())
    assert [row["image"] for row in new] == NAMES[2:]
    done = run(images, "--output", output, "--resume")
    assert done.out.startswith("0 good, 0 anomalous, 4 done before")


def test_an_interrupted_run_leaves_no_temporary_file_and_resumes(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a file is written: exit code 130, no temporary file, and --resume goes on."""
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        # Three files of the first image, and the second of the second.
        patch.setattr(Path, "replace", _interrupt_after(5))
        done = run(images, "--output", output)
    assert done == Ran(130, "", "interrupted; --resume goes on from here.\n")
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]
    assert ["verdict" in row for row in lines(output)] == [True]
    done = run(images, "--output", output, "--resume")
    assert done.out.endswith(f"1 done before; results in {output}\n")


def _interrupt_after(count: int) -> Callable[[Path, Path], Path]:
    calls, real = [], Path.replace

    def replace(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == count:
            raise KeyboardInterrupt
        return real(path, target)

    return replace


LINE = ["--uncalibrated", "--store", "line.db"]
ON_A_BUNDLE = {
    "inspect": ["images", "--output", "out"],
    "calibrate": ["--good", "images", "--output", "c"],
    "watch": ["images", *LINE],
    "serve": [*LINE, "--port", "0"],
}


@pytest.mark.parametrize("command", ON_A_BUNDLE)
def test_every_command_may_choose_a_gpu(
    command: str,
    toy: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(images.parent)
    assert main([command, str(toy), *ON_A_BUNDLE[command], "--device-id", "3"]) == 1
    said = capfd.readouterr().err
    assert said.startswith("error: device_id=3 chooses a GPU, and provider 'cpu' uses none")


@pytest.mark.parametrize("command", ON_A_BUNDLE)
def test_a_missing_bundle_leaves_nothing(
    command: str, images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(images.parent)
    before = sorted(images.parent.iterdir())
    assert main([command, "nowhere", *ON_A_BUNDLE[command]]) == 1
    assert capfd.readouterr().err.startswith("error: There is no bundle in nowhere")
    assert sorted(images.parent.iterdir()) == before


@pytest.mark.parametrize("command", ["inspect", "calibrate", "watch", "report", "label", "store"])
def test_a_path_that_no_system_takes_is_a_sentence(
    command: str, toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = str(tmp_path / ("n" * 300))
    arguments = {
        "inspect": [str(toy), long, "--output", str(tmp_path / "out")],
        "calibrate": [str(toy), "--good", long, "--output", str(tmp_path / "c")],
        "watch": [str(toy), long, "--uncalibrated", "--store", str(tmp_path / "line.db")],
        "report": [long, "-o", str(tmp_path / "r.html")],
        "label": [long, "1", "good"],
        "store": ["check", long],
    }
    assert main([command, *arguments[command]]) == 1
    assert capfd.readouterr().err == f"error: {long} cannot be used (File name too long).\n"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough_is_no_traceback(toy: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from clipsam.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "info", str(toy)], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# Ctrl-C arrives while a module is imported, and whatever is raised there becomes an ImportError, as
# NumPy's C code makes it.
INTERRUPT = """
import os, runpy, signal, sys
class Import:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                sum(range(100000))
            except KeyboardInterrupt:
                raise ImportError("numpy.core.multiarray failed to import")
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Import())
sys.argv[1:] = sys.argv[2:]
runpy.run_module("clipsam.runtime.cli", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("module", ["numpy", "cv2", "onnxruntime"])
def test_an_interrupted_import_is_one_line(
    toy: Path, images: Path, tmp_path: Path, module: str
) -> None:
    arguments = ["inspect", str(toy), str(images), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT, module, *arguments],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert re.fullmatch(r"interrupted[^\n]*\.\n", done.stderr)
    assert not (tmp_path / "out").exists()
