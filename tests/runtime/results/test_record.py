"""The record: rows are added, never lost, never erased, and one process writes them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from support.cli_run import NAMES, Run, lines, listing, save
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime import OutputError
from clipsam.runtime.core.files import sha256
from clipsam.runtime.results import record as module
from clipsam.runtime.results.index import read_index, row_line
from clipsam.runtime.results.record import Record


def test_a_second_run_adds_its_rows(run: Run, images: Path, tmp_path: Path) -> None:
    run(images, "--output", tmp_path / "out")
    first = (tmp_path / "out/results.jsonl").read_bytes()
    run(images / "bad.png", "--output", tmp_path / "out")
    assert (tmp_path / "out/results.jsonl").read_bytes().startswith(first)
    assert [row["image"] for row in lines(tmp_path / "out")] == [*NAMES, "bad.png"]


@pytest.mark.parametrize(
    "option",
    [("--category", "bottle"), ("--norm", "image"), ("--deadline-ms", "100000")],
    ids=lambda option: option[0],
)
def test_resume_with_other_options_judges_anew_and_keeps_the_rows(
    run: Run, images: Path, tmp_path: Path, option: tuple[str, str]
) -> None:
    run(images, "--output", tmp_path / "out")
    first = (tmp_path / "out/results.jsonl").read_bytes()
    done = run(images, "--output", tmp_path / "out", "--resume", *option)
    assert "done before" not in done.out
    assert (tmp_path / "out/results.jsonl").read_bytes().startswith(first)
    for options in ((), option):
        done = run(images, "--output", tmp_path / "out", "--resume", *options)
        assert "4 done before" in done.out
    assert len(lines(tmp_path / "out")) == 8


def test_another_picture_of_the_same_name_is_judged(run: Run, images: Path, tmp_path: Path) -> None:
    run(images, "--output", tmp_path / "out")
    save(images / "bad.png", plain_part())
    done = run(images, "--output", tmp_path / "out", "--resume")
    assert done.out.startswith("1 good, 0 anomalous, 3 done before")
    assert [r["verdict"] for r in lines(tmp_path / "out") if r["image"] == "bad.png"] == [
        "anomalous",
        "good",
    ]


def test_a_picture_that_a_deadline_left_rough_is_judged_anew(
    run: Run, images: Path, tmp_path: Path
) -> None:
    options = (images, "--output", tmp_path / "out", "--resume", "--deadline-ms", "0.001")
    assert run(*options).out.startswith("2 good, 2 anomalous;")
    assert run(*options).out.startswith("0 good, 2 anomalous, 2 done before;")


def test_a_picture_written_to_meanwhile_has_no_verdict(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipsam.runtime import folder

    real = sha256

    def hash_then_write(path: Path, most: int) -> str:
        found = real(path, most)
        if path.name == "good.jpg":
            save(path, bright_square())
        return found

    monkeypatch.setattr(folder, "sha256", hash_then_write)
    done = run(images, "--output", tmp_path / "out")
    assert done.code == 3
    assert done.err == f"error: {images / 'good.jpg'} was written to meanwhile: inspect it again.\n"
    verdicts = [row["verdict"] for row in lines(tmp_path / "out")]
    assert verdicts == ["anomalous", "not_judged", "anomalous", "good"]


JUDGED = {
    "image": 'b "ü".png',
    "stem": "b",
    "sha256": "00",
    "settings": "s",
    "verdict": "good",
}
HOLD = """
import sys, time
from pathlib import Path
from clipsam.runtime.results.record import Record
record = Record(Path(sys.argv[1]))
record.plan({"mine": "mine.png", "bad": "bad.png"})
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_frees_the_record(
    run: Run, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (output / ".mine.mask.png.0123456789abcdef").write_bytes(b"half a file")
        (output / ".mine.mask.png").write_bytes(b"not of ours")
        (output / "bad.mask.png").write_bytes(b"a whole file")
        done = run(images, "--output", output)
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            f"error: {output / 'results.jsonl'} is being written by another inspection: wait for "
            "it to end, or choose another --output.\n"
        )
        holder.kill()
    assert run(images, "--output", output, "--resume").code == 0
    assert [row["image"] for row in lines(output)] == NAMES
    left = [name for name in listing(output) if name.startswith(".") or "journal" in name]
    assert left == [".mine.mask.png"]


def test_files_that_a_power_cut_left_without_a_row_remain_ours(
    run: Run, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    record = Record(output)
    record.plan({"bad": "bad.png", "good": "good.jpg"})
    os.close(record._file)  # as the end of a process does
    (output / "bad.mask.png").write_bytes(b"the first of three files")
    (output / "results.jsonl").write_bytes(bytes(512))
    assert run(images / "good.jpg", "--output", output).code == 0
    assert json.loads((output / "results.jsonl.journal").read_text()) == {"bad": "bad.png"}
    assert "holds no image" in run(output, "--output", tmp_path / "other").err
    assert run(images, "--output", output, "--resume").out.startswith("1 good, 2 anomalous, 1 done")
    assert sorted(row["image"] for row in lines(output)) == NAMES
    assert len(listing(output)) == 13


def test_a_torn_line_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.add_row({"image": "a.png", "error": "damaged"})
        first = (tmp_path / "results.jsonl").stat().st_size
        record.add_row(JUDGED)
    whole = (tmp_path / "results.jsonl").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "results.jsonl").write_bytes(whole[:end])
        with Record(tmp_path) as record:
            assert record.stands('b "ü".png', "00", "s") == (end == len(whole) - 1)
            record.add_row({"image": "c.png", "error": "last"})
        rows = [row["image"] for row in lines(tmp_path)]
        assert rows == [
            *(["a.png"] if end >= first - 1 else []),
            *(['b "ü".png'] if end == len(whole) - 1 else []),
            "c.png",
        ]
    (tmp_path / "results.jsonl").write_bytes(whole + bytes(4096))  # as a power cut leaves it
    with Record(tmp_path) as record:
        assert record.stands('b "ü".png', "00", "s")
    assert (tmp_path / "results.jsonl").read_bytes() == whole


def test_a_damaged_line_stands_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with Record(tmp_path) as record:
        record.add_row({"image": "a.png", "error": "damaged"})
        first = path.stat().st_size
        record.add_row(JUDGED)
    whole = path.read_bytes()
    for at in range(first, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with Record(tmp_path) as record:
            assert not record.stands('b "ü".png', "00", "s")
            assert not record.wrote("b")


@pytest.mark.parametrize("content", ["my notes", "[1]", "{", '{"../a": "a.png"}', '{"a": 1}'])
def test_a_journal_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.jsonl.journal").write_text(content)
    with pytest.raises(OutputError, match="journal is no record of `clipsam inspect`: move it"):
        Record(tmp_path)
    assert (tmp_path / "results.jsonl.journal").read_text() == content


@pytest.mark.parametrize("content", ["my notes", "my notes\n", "[1]\n2\n", '{"name": 1}\n'])
def test_what_is_no_record_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(OutputError, match="no record of `clipsam inspect`: move it away"):
        Record(tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == content


def test_a_pipe_is_no_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.jsonl")
    with pytest.raises(OutputError, match="no record of"):
        Record(tmp_path)


def test_the_index_of_many_rows_is_small(tmp_path: Path) -> None:
    contour = [[x, x] for x in range(500)]
    with (tmp_path / "results.jsonl").open("wb") as file:
        for number in range(600):
            row = {"image": f"{number}.png", "stem": str(number), "sha256": "0", "settings": "s"}
            file.write(row_line({**row, "regions": [{"contour": contour}]}))
    tracemalloc.start()
    index = read_index(tmp_path)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert index.stands("599.png", "0", "s")
    assert held < 500 * 600


def test_files_are_on_the_disk_before_the_rows_that_name_them(
    run: Run, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, seen = tmp_path / "out", list[tuple[str, int]]()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        rows = output / "results.jsonl"
        seen.append((path.relative_to(tmp_path).as_posix(), rows.stat().st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(module, "SYNC_EVERY", 0.0)
    run(images, "--output", output)
    named = [(re.sub(r"/\.(.*)\.[0-9a-f]{16}$", r"/\1", name), size) for name, size in seen]
    ours = [".overlay.png", ".mask.png", ".score.tiff"]
    assert named[:7] == [
        ("out/results.jsonl.journal", 0),
        ("out", 0),
        *((f"out/bad{ending}", 0) for ending in ours),
        ("out", 0),
        ("out/results.jsonl", (output / "results.jsonl").read_bytes().index(b"\n") + 1),
    ]
    last = [name for name, _ in named if name != "out/results.jsonl"][-6:]
    deep = "out/line 1/äöü"
    assert last == [*(f"{deep}/ok{ending}" for ending in ours), deep, "out/line 1", "out"]
