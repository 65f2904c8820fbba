"""Folders and cameras as sources, as they are in a factory: torn, in bursts, lost and found."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.line_station import good_part, write_part

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.station.sources import camera
from clipsam.runtime.station.sources.base import Captured, Source
from clipsam.runtime.station.sources.camera import CameraSource, is_camera, public_name
from clipsam.runtime.station.sources.files import ends_well, state_of
from clipsam.runtime.station.sources.folder import FolderSource
from clipsam.runtime.station.sources.lines import Lines, PathSource

Watch = Callable[..., FolderSource]
LONG = 20.0  # seconds, until a test gives up


class Alarms(dict[str, str]):
    """What is alarmed now; a Source's `alarm`."""

    def __init__(self) -> None:
        self.raised: list[str] = []

    def __call__(self, kind: str, message: str | None) -> None:
        if message is None:
            self.pop(kind, None)
        else:
            self[kind] = message
            self.raised.append(message)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def alarms() -> Alarms:
    return Alarms()


@pytest.fixture
def watch(folder: Path, alarms: Alarms) -> Iterator[Watch]:
    opened: list[FolderSource] = []

    def make(**options: object) -> FolderSource:
        options = {"known": lambda name, state: False, **options}
        opened.append(FolderSource(folder, alarms, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for source in opened:
        source.close()


def names(source: Source, count: int, seconds: float = LONG) -> list[str]:
    """The names of the next `count` parts."""
    found: list[str] = []
    end = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        part = source.poll(0.1)
        if part is not None:
            found.append(part.name)
    return found


def test_what_is_there_comes_first_by_age_then_what_comes(folder: Path, watch: Watch) -> None:
    for n in range(3):
        path = write_part(folder, f"{2 - n}.png", good_part(n))
        os.utime(path, (1000 + n, 1000 + n))
    source = watch(rescan=60.0)  # so that what follows is told of, not found
    assert names(source, 3) == ["2.png", "1.png", "0.png"]
    write_part(folder, "new.png", good_part())
    write_part(folder, "sub/deep/new.jpg", good_part())
    assert sorted(names(source, 2)) == ["new.png", "sub/deep/new.jpg"]
    assert names(source, 1, 0.5) == []


def test_a_burst_comes_whole_and_each_part_once(folder: Path, watch: Watch) -> None:
    source = watch(rescan=0.3)

    def burst() -> None:
        for n in range(150):
            write_part(folder, f"{n % 7}/{n}.png", good_part(n))

    writer = threading.Thread(target=burst)
    writer.start()
    found = names(source, 150)
    writer.join()
    assert len(found) == len(set(found)) == 150
    assert names(source, 1, 1.0) == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
def test_a_file_is_given_when_it_is_whole(folder: Path, watch: Watch, suffix: str) -> None:
    data = cv2.imencode(suffix, good_part())[1].tobytes()
    source = watch(rescan=60.0)
    path = folder / f"slow{suffix}"
    with path.open("wb") as file:
        for start in range(0, len(data), max(1, len(data) // 5)):
            file.write(data[start : start + max(1, len(data) // 5)])
            file.flush()
            assert source.poll(0.1) is None or path.stat().st_size == len(data)
    # The last poll may have given it.
    part = source.poll(0.0)
    while part is None and not source._given:
        part = source.poll(0.1)
    assert ends_well(path) in (True, None)


@pytest.mark.parametrize("form", [".png", ".jpg", ".bmp", ".webp", ".tiff"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff"])
def test_the_end_is_told_by_what_a_file_holds_whatever_it_is_called(
    folder: Path, form: str, suffix: str
) -> None:
    data, path = cv2.imencode(form, good_part())[1].tobytes(), folder / f"part{suffix}"
    path.write_bytes(data)
    assert ends_well(path) is (None if form == ".tiff" else True)
    if form != ".tiff":
        path.write_bytes(data[:-9])
        assert ends_well(path) is False
    path.write_bytes(b"")
    assert ends_well(path) is False


def test_a_file_that_stays_torn_is_given_in_the_end(folder: Path, watch: Watch) -> None:
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n")
    (folder / "empty.jpg").touch()
    source = watch(patience=0.5)
    assert sorted(names(source, 2)) == ["empty.jpg", "torn.png"]


def test_temporary_names_are_not_looked_at(folder: Path, watch: Watch) -> None:
    source = watch(rescan=0.2)
    for name in (".part.png", "part.png.tmp", "part.txt", ".hidden/part.png"):
        write_part(folder, "x.png", good_part())
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / "x.png").rename(folder / name)
    assert names(source, 1, 1.0) in ([], ["x.png"])
    (folder / "part.png.tmp").rename(folder / "part.png")
    assert names(source, 1) == ["part.png"]


def test_a_file_written_anew_comes_again_and_an_unchanged_one_does_not(
    folder: Path, watch: Watch
) -> None:
    write_part(folder, "latest.png", good_part(1))
    source = watch(rescan=0.1)
    assert names(source, 1) == ["latest.png"]
    assert names(source, 1, 0.5) == []
    write_part(folder, "latest.png", good_part(2))
    assert names(source, 1) == ["latest.png"]


def test_what_was_judged_before_is_left_alone(folder: Path, watch: Watch) -> None:
    old = write_part(folder, "old.png", good_part(1))
    write_part(folder, "new.png", good_part(2))
    known = {("old.png", state_of(old))}
    source = watch(known=lambda name, state: (name, state) in known, rescan=0.1)
    assert names(source, 2, 1.0) == ["new.png"]


def test_the_stores_own_pictures_are_not_looked_at(folder: Path, watch: Watch) -> None:
    write_part(folder, "line.pictures/2026-01-01/1.png", good_part())
    write_part(folder, "a.png", good_part())
    source = watch(without=folder / "line.pictures", rescan=0.1)
    write_part(folder, "line.pictures/2026-01-01/2.png", good_part())
    assert names(source, 2, 1.0) == ["a.png"]


def test_a_renamed_file_that_still_waits_comes_once(folder: Path, watch: Watch) -> None:
    (folder / "a.png").write_bytes(b"\x89PNG")
    source = watch(patience=1.0, rescan=0.2)
    assert source.poll(0.2) is None
    (folder / "a.png").rename(folder / "b.png")
    assert names(source, 2, 3.0) == ["b.png"]


def test_a_folder_that_goes_away_and_comes_back(folder: Path, watch: Watch, alarms: Alarms) -> None:
    source = watch(rescan=0.1)
    folder.rename(folder.with_name("elsewhere"))
    deadline = time.monotonic() + LONG
    while "folder" not in alarms and time.monotonic() < deadline:
        source.poll(0.1)
    assert "cannot be read" in alarms["folder"]
    folder.mkdir()
    write_part(folder, "a.png", good_part())
    assert names(source, 1) == ["a.png"]
    assert "folder" not in alarms


def test_paths_come_from_lines(tmp_path: Path) -> None:
    path = write_part(tmp_path, "a b.png", good_part())
    source = PathSource(Lines(io.StringIO(f"{path}\tS 1\n\n{tmp_path}/none.png\n")))
    parts: list[Captured] = []
    while not source.ended:
        part = source.poll(0.1)
        if part is not None:
            parts.append(part)
    assert [(p.path, p.serial) for p in parts] == [(path, "S 1"), (tmp_path / "none.png", None)]
    assert parts[0].state == state_of(path)
    assert parts[1].state is None


class FakeCapture:
    """A camera that gives frames of the numbers it is given, then none."""

    def __init__(self, numbers: Iterator[int] | None, pace: Callable[[], None]) -> None:
        self._numbers, self._pace = numbers, pace
        self.buffer = np.zeros((20, 30, 3), np.uint8)  # used again, as drivers do

    def isOpened(self) -> bool:  # noqa: N802
        return self._numbers is not None

    def get(self, what: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        assert self._numbers is not None
        self._pace()
        number = next(self._numbers, None)
        if number is None:
            return False, self.buffer
        self.buffer[:] = number
        return True, self.buffer

    def release(self) -> None:
        pass


@pytest.fixture
def cameras() -> Iterator[Callable[..., CameraSource]]:
    opened: list[CameraSource] = []

    def make(address: str, alarm: Alarms, **options: object) -> CameraSource:
        opened.append(CameraSource(address, alarm, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for source in opened:
        source.close()


def frames(source: CameraSource, count: int) -> list[int]:
    """What the next `count` frames show."""
    found: list[int] = []
    end = time.monotonic() + LONG
    while len(found) < count and not source.ended and time.monotonic() < end:
        part = source.poll(0.1)
        if part is not None and part.image is not None:
            found.append(int(part.image[0, 0, 0]))
    return found


Cameras = Callable[..., CameraSource]


@pytest.mark.parametrize("behind", ["drop", "queue"])
def test_frames_are_dropped_or_queued_by_a_stated_rule(
    cameras: Cameras, alarms: Alarms, behind: str
) -> None:
    read = threading.Event()
    last = threading.Event()

    def numbers() -> Iterator[int]:
        yield from range(1, 101)
        read.set()
        last.wait()

    source = cameras(
        "0", alarms, behind=behind, opener=lambda _: FakeCapture(numbers(), lambda: None)
    )
    if behind == "queue":
        assert frames(source, 100) == list(range(1, 101))
        assert source.figures()["dropped"] == 0
    else:
        assert read.wait(LONG)
        assert frames(source, 1) == [100]
        assert source.figures() == {"frames": 100, "dropped": 99, "lost": 0}
    last.set()


def test_a_stream_that_opencv_fails_on_is_opened_again(
    cameras: Cameras, alarms: Alarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "_FIRST_WAIT", 0.01)

    def numbers() -> Iterator[int]:
        yield 1
        raise cv2.error("a damaged frame")

    shots = chain([numbers()], repeat(iter([2, 3])))
    source = cameras(
        "0", alarms, behind="queue", opener=lambda _: FakeCapture(next(shots), lambda: None)
    )
    assert frames(source, 3) == [1, 2, 3]
    assert alarms.raised[0].startswith("camera 0 gives no pictures; it is opened again")


def test_a_lost_camera_is_opened_again_with_longer_and_longer_waits(
    cameras: Cameras, alarms: Alarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(camera, "_LONGEST_WAIT", 0.04)
    shots = iter([[1, 2], None, None, None, None, [3], None, [4, 5]])

    def opener(address: str) -> FakeCapture:
        shot = next(shots, None)
        return FakeCapture(None if shot is None else iter(shot), lambda: None)

    source = cameras("0", alarms, behind="queue", opener=opener)
    assert frames(source, 5) == [1, 2, 3, 4, 5]
    waits = [message.split(" in ")[1] for message in alarms.raised]
    assert waits[:7] == [
        "0.01 s.",
        "0.02 s.",
        "0.04 s.",
        "0.04 s.",
        "0.04 s.",
        "0.01 s.",
        "0.02 s.",
    ]
    assert source.figures()["lost"] >= 2


def test_a_part_for_every_line_with_a_frame_taken_after_it(
    cameras: Cameras, alarms: Alarms
) -> None:
    reading, writing = os.pipe()
    triggers = Lines(os.fdopen(reading))
    clock = iter(range(1, 10**6))
    source = cameras(
        "0",
        alarms,
        triggers=triggers,
        opener=lambda _: FakeCapture((n % 250 for n in clock), lambda: time.sleep(0.01)),
    )
    assert source.poll(0.3) is None
    before = source.figures()["frames"]
    os.write(writing, b"S1\n\n")
    first, second = source.poll(LONG), source.poll(LONG)
    assert first is not None
    assert second is not None
    assert (first.serial, second.serial) == ("S1", None)
    numbers = [int(part.name.rsplit(" ", 1)[1]) for part in (first, second)]
    assert before < numbers[0] < numbers[1]
    os.close(writing)
    deadline = time.monotonic() + LONG
    while not source.ended and time.monotonic() < deadline:
        source.poll(0.1)
    assert source.ended


def test_a_line_while_the_camera_is_lost_is_a_part_without_a_picture(
    cameras: Cameras, alarms: Alarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "_FRESH", 0.1)
    source = cameras(
        "0",
        alarms,
        triggers=Lines(io.StringIO("S1\n")),
        opener=lambda _: FakeCapture(None, lambda: None),
    )
    part = source.poll(LONG)
    assert part is not None
    assert (part.serial, part.image, part.path) == ("S1", None, None)


def test_a_part_every_interval(
    cameras: Cameras, alarms: Alarms, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, pause = SimpleNamespace(now=0.0), time.sleep

    def tick() -> None:  # 200 frames a second, by the source's clock
        clock.now += 0.005
        pause(0.0005)

    times = SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda _: pause(0.0005))
    monkeypatch.setattr(camera, "time", times)
    numbers = (n % 250 for n in range(10**6))
    source = cameras("0", alarms, interval=0.2, opener=lambda _: FakeCapture(numbers, tick))
    found = [int(name.rsplit(" ", 1)[1]) for name in names(source, 4)]
    assert len(found) == 4
    assert all(number >= 40 * part for part, number in enumerate(found))


def test_a_video_file_is_judged_frame_by_frame_to_its_end(
    cameras: Cameras, alarms: Alarms, tmp_path: Path
) -> None:
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for n in range(40):
        writer.write(np.full((48, 64, 3), 5 * n, np.uint8))
    writer.release()
    source = cameras(str(path), alarms)
    found = frames(source, 100)
    assert len(found) == 40
    assert found == sorted(found)
    assert source.ended
    assert alarms.raised == []


def test_of_a_video_a_part_may_be_taken_every_so_many_seconds_of_it(
    cameras: Cameras, alarms: Alarms, tmp_path: Path
) -> None:
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for n in range(25):
        writer.write(np.full((48, 64, 3), 5 * n, np.uint8))
    writer.release()
    source = cameras(str(path), alarms, interval=1.0)
    assert names(source, 3) == [f"line.avi frame {n}" for n in (1, 11, 21)]
    assert source.poll(0.5) is None
    assert source.ended


def test_a_file_that_is_no_video_is_refused(alarms: Alarms, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no video")
    with pytest.raises(OptionError, match="cannot be opened as a video"):
        CameraSource(str(tmp_path / "a.txt"), alarms)


def test_sources_are_told_apart_and_passwords_not_told(tmp_path: Path) -> None:
    assert is_camera("0")
    assert is_camera("rtsp://user:secret@10.0.0.5:554/main?key=1")
    assert not is_camera(str(tmp_path))
    assert public_name("rtsp://user:secret@10.0.0.5:554/main?key=1") == "rtsp://10.0.0.5:554/main"
    assert public_name("1") == "camera 1"
