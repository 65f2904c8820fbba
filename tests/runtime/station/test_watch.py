"""`clipsam watch` as a program: started, killed, stopped, and used wrongly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.interrupts import attend_interrupts
from support.line_station import bad_part, good_part, parts_of, write_part
from support.toy_bundle import plain_part

from clipsam.runtime.cli import main
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import check

LONG = 120.0  # seconds, until a test gives up


class Program:
    """A running `clipsam watch`."""

    def __init__(self, toy: Path, store: Path, source: str, *args: str) -> None:
        command = [sys.executable, "-m", "clipsam.runtime.cli", "watch", str(toy), source]
        command += ["--store", str(store), "--uncalibrated", "--threads", "1", *args]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            bufsize=1,
            preexec_fn=attend_interrupts,
        )

    def answers(self, count: int) -> list[dict[str, Any]]:
        assert self.process.stdout is not None
        return [json.loads(self.process.stdout.readline()) for _ in range(count)]

    def end(self) -> tuple[int, str]:
        """Exit code and what is left on stderr."""
        _, err = self.process.communicate(timeout=LONG)
        return self.process.returncode, err


@pytest.fixture
def started() -> Iterator[list[Program]]:
    programs: list[Program] = []
    yield programs
    for program in programs:
        program.process.kill()
        program.process.wait()
        for stream in (program.process.stdin, program.process.stdout, program.process.stderr):
            if stream is not None:
                stream.close()


def test_a_folder_is_watched_until_it_is_told_to_stop(
    toy: Path, tmp_path: Path, started: list[Program]
) -> None:
    folder, store, health = tmp_path / "in", tmp_path / "line.db", tmp_path / "health.json"
    write_part(folder, "a_S1.png", bad_part())
    program = Program(
        toy, store, str(folder), "--serial", r"_(S\d+)", "--keep-good", "0%",
        "--health-file", str(health),
    )  # fmt: skip
    started.append(program)
    (first,) = program.answers(1)
    assert (first["id"], first["verdict"], first["serial"]) == (1, "anomalous", "S1")
    assert first["score"] > first["limit"]
    assert set(first["regions"][0]) == {"box", "area", "score", "kinds"}
    write_part(folder, "sub/b.png", good_part())
    (second,) = program.answers(1)
    assert (second["name"], second["verdict"]) == ("sub/b.png", "good")
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == 0
    told = json.loads(health.read_text())
    assert (told["parts"]["good"], told["parts"]["anomalous"]) == (1, 1)
    with Store(store) as opened:
        assert check(opened) == []
        assert [kind for _, kind, _ in opened.events()] == ["start", "stop"]


def test_killed_at_random_it_loses_nothing(
    toy: Path, tmp_path: Path, started: list[Program]
) -> None:
    folder, store = tmp_path / "in", tmp_path / "line.db"
    for n in range(60):
        write_part(folder, f"{n}.png", bad_part() if n % 10 == 0 else good_part(n))
    random = np.random.default_rng(7)
    for _ in range(4):
        program = Program(toy, store, str(folder))
        started.append(program)
        program.answers(int(random.integers(1, 9)))
        time.sleep(float(random.uniform(0, 0.02)))
        program.process.send_signal(signal.SIGKILL)
        program.process.wait()
    program = Program(toy, store, str(folder))
    started.append(program)
    deadline = time.monotonic() + LONG
    while any(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    program.process.send_signal(signal.SIGTERM)
    code, err = program.end()
    assert code == 0, err
    parts = parts_of(store)
    assert sorted(part.name for part in parts) == sorted(f"{n}.png" for n in range(60))
    assert all(part.state == "judged" and part.filed for part in parts)
    verdicts = {part.name: part.verdict for part in parts if part.reasons != ("crashed",)}
    assert len(verdicts) > 40, "two kills in the same part are rare"
    assert all((verdicts[n] == "anomalous") == (n.endswith("0.png")) for n in verdicts)
    with Store(store) as opened:
        assert check(opened) == []


def test_paths_on_standard_input_end_with_it(
    toy: Path, tmp_path: Path, started: list[Program]
) -> None:
    path = write_part(tmp_path, "a.png", bad_part())
    program = Program(toy, tmp_path / "line.db", "-", "--leave")
    started.append(program)
    assert program.process.stdin is not None
    program.process.stdin.write(f"{path}\tS1\n{tmp_path}/none.png\n")
    program.process.stdin.flush()
    first, second = program.answers(2)
    assert (first["serial"], first["verdict"]) == ("S1", "anomalous")
    assert (second["verdict"], second["reasons"]) == ("not_judged", ["unreadable"])
    assert program.end()[0] == 0
    assert path.exists()


def test_waiting_for_a_line_it_can_be_stopped(
    toy: Path, tmp_path: Path, started: list[Program]
) -> None:
    program = Program(toy, tmp_path / "line.db", "-")
    started.append(program)
    assert program.process.stderr is not None
    assert program.process.stderr.readline().startswith("watching -")
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(LONG) == 0
    assert program.process.stderr.read() == ""


def test_a_video_is_judged_to_its_end(toy: Path, tmp_path: Path) -> None:
    path, store = tmp_path / "line.avi", tmp_path / "line.db"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (80, 60))
    for n in range(12):
        writer.write(bad_part() if n == 5 else plain_part(60, 80))
    writer.release()
    args = ["--store", str(store), "--uncalibrated", "--quiet"]
    assert main(["watch", str(toy), str(path), *args]) == 0
    assert [p.id for p in parts_of(store) if p.verdict == "anomalous"] == [6]
    assert len(parts_of(store)) == 12


def test_wrong_use_is_said_and_leaves_nothing(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "line.db"
    (tmp_path / "in").mkdir()

    def said(*args: str) -> str:
        assert main(["watch", *args]) == 1
        return capsys.readouterr().err

    usual = ["--store", str(store), "--uncalibrated"]
    assert "no folder, camera or video" in said(str(toy), str(tmp_path / "none"), *usual)
    assert "are for cameras" in said(str(toy), str(tmp_path / "in"), "--every", "1s", *usual)
    missing = ["--store", str(store), "--calibration", str(tmp_path / "none.calibration")]
    assert "cannot be read" in said(str(toy), str(tmp_path / "in"), *missing)
    assert "no bundle" in said(str(tmp_path), str(tmp_path / "in"), *usual)
    assert "does not know the category" in said(
        str(toy), str(tmp_path / "in"), "--category", "x", *usual
    )
    assert not store.exists()
    assert "is no folder" in said(str(toy), str(tmp_path / "in"), "--uncalibrated", "--store",
                                  str(tmp_path / "none/line.db"))  # fmt: skip
    with Store(store, create=True) as opened:
        opened.claim()
        assert "in use by another" in said(str(toy), str(tmp_path / "in"), *usual)
    for wrong in (
        ["--keep-good", "2"],
        ["--keep-good", "nan%"],
        ["--serial", "("],
        ["--retain", "90"],
        ["--metrics-port", "0"],
        ["--every", "1s", "--on-line"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["watch", str(toy), str(tmp_path / "in"), *usual, *wrong])
    with pytest.raises(SystemExit, match="2"):  # neither calibrated nor said not to be
        main(["watch", str(toy), str(tmp_path / "in"), "--store", str(store)])
    assert "--uncalibrated" in capsys.readouterr().err


def test_a_closed_pipe_is_an_alarm_and_not_the_end(
    toy: Path, tmp_path: Path, started: list[Program]
) -> None:
    folder, store = tmp_path / "in", tmp_path / "line.db"
    write_part(folder, "a.png", good_part(1))
    program = Program(toy, store, str(folder))
    started.append(program)
    program.answers(1)
    assert program.process.stdout is not None
    program.process.stdout.close()
    program.process.stdout = None
    write_part(folder, "b.png", good_part(2))
    deadline = time.monotonic() + LONG
    while any(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    program.process.send_signal(signal.SIGTERM)
    code, err = program.end()
    assert len(parts_of(store)) == 2
    assert "alarm: answers: BrokenPipeError" in err
    assert code == 0
    assert list(folder.iterdir()) == []
