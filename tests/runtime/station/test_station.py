"""The station: nothing lost, nothing judged twice, and no picture stops the line."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.line_station import (
    ListSource,
    bad_part,
    good_part,
    parts_of,
    run_station,
    write_part,
)

from clipsam.runtime.core.errors import DiskFullError, OutputError, SessionError
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.station import filing
from clipsam.runtime.station.answers import answer_of
from clipsam.runtime.station.part import Part
from clipsam.runtime.station.pictures import Keep
from clipsam.runtime.station.sources.base import Captured
from clipsam.runtime.station.sources.folder import FolderSource
from clipsam.runtime.station.sources.lines import Lines, PathSource
from clipsam.runtime.station.station import Options, Station
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import check


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "line.db"


def sound(store: Path) -> bool:
    with Store(store) as opened:
        return check(opened) == []


def test_a_part_becomes_a_row_an_answer_and_a_kept_picture(
    toy: Path, folder: Path, store: Path
) -> None:
    write_part(folder, "good S7.png", good_part())
    write_part(folder, "bad S8.png", bad_part())
    (folder / "torn.png").write_bytes(b"no picture")
    names = ["good S7.png", "bad S8.png", "torn.png"]
    options = Options(category="metal nut", serial=re.compile(r"(S\d+)"))
    answers, health = run_station(toy, store, ListSource(names, folder), options)
    parts = parts_of(store)
    assert [part.verdict for part in parts] == ["good", "anomalous", "not_judged"]
    assert [part.serial for part in parts] == ["S7", "S8", None]
    assert [part.id for part in answers] == [1, 2, 3]
    assert parts[1].regions
    assert parts[1].category == "metal nut"
    assert parts[1].provider == "cpu"
    assert (parts[2].reasons, parts[2].score) == (("damaged",), None)
    assert "torn.png is damaged" in (parts[2].message or "")
    assert list(folder.iterdir()) == []  # moved, all of them
    picture, score_map = parts[1].picture_path(store), parts[1].map_path(store)
    assert picture is not None
    assert score_map is not None
    assert (read_image(picture) == bad_part()).all()
    assert read_image(score_map).shape == (60, 80, 3)
    assert sound(store)
    counts = health.snapshot()["parts"]
    assert (counts["good"], counts["anomalous"], counts["not_judged"]) == (1, 1, 1)


@pytest.mark.parametrize("leave", [False, True])
def test_good_pictures_can_be_let_go_or_all_left(
    toy: Path, folder: Path, store: Path, leave: bool
) -> None:
    write_part(folder, "good.png", good_part())
    write_part(folder, "bad.png", bad_part())
    options = Options(keep=Keep(good=0.0, leave=leave))
    run_station(toy, store, ListSource(["good.png", "bad.png"], folder), options)
    good, bad = parts_of(store)
    if leave:
        assert sorted(p.name for p in folder.iterdir()) == ["bad.png", "good.png"]
        assert good.picture_path(store) == folder / "good.png"
    else:
        assert list(folder.iterdir()) == []
        assert good.picture is None
        assert bad.picture is not None
    assert sound(store)


def test_frames_of_a_camera_are_on_disk_before_they_are_judged(
    toy: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = ClipSAM._refine

    def refine(self: ClipSAM, *args: Any, **kwargs: Any) -> Any:
        with Store(store, read_only=True) as opened:
            part = next(opened.parts("state = 'taken'"))
        path = part.picture_path(store)
        seen.append(path is not None and read_image(path).shape == (60, 80, 3))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ClipSAM, "_refine", refine)
    run_station(toy, store, ListSource([bad_part()]))
    assert seen == [True]
    (part,) = parts_of(store)
    assert (part.verdict, part.name) == ("anomalous", "camera 0 frame 1")
    assert list((store.with_suffix(".pictures") / "incoming").iterdir()) == []
    assert sound(store)


def test_a_picture_delivered_again_is_not_judged_again(
    toy: Path, folder: Path, store: Path
) -> None:
    def again(name: str, mtime: int | None = None) -> None:
        path = write_part(folder, name, good_part(1))
        if mtime is not None:
            os.utime(path, ns=(mtime, mtime))

    again("a.png", 5_000_000_000)
    names = ["a.png", lambda: again("a.png"), "a.png", lambda: again("b.png", 5_000_000_000),
             "b.png", lambda: again("c.png"), "c.png"]  # fmt: skip
    run_station(toy, store, ListSource(names[:1], folder))
    answers, health = run_station(toy, store, ListSource(names[1:], folder))
    # The same name; renamed; and another part that looks the same.
    assert [part.name for part in parts_of(store)] == ["a.png", "c.png"]
    assert [part.id for part in answers] == [1, 1, 2]
    assert health.snapshot()["parts"]["duplicates"] == 2
    assert list(folder.iterdir()) == []
    assert sound(store)


def test_a_file_that_is_written_to_meanwhile_is_not_judged_as_another(
    toy: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part(folder, "latest.png", good_part())
    real = ClipSAM._refine

    def refine(self: ClipSAM, *args: Any, **kwargs: Any) -> Any:
        write_part(folder, "latest.png", bad_part())
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ClipSAM, "_refine", refine)
        run_station(toy, store, ListSource(["latest.png"], folder))
    run_station(toy, store, ListSource(["latest.png"], folder))
    assert [(p.verdict, p.reasons) for p in parts_of(store)] == [
        ("not_judged", ("overwritten",)),
        ("anomalous", ()),
    ]
    assert sound(store)


def test_a_trigger_without_a_picture_is_a_part_too(toy: Path, store: Path) -> None:
    source = ListSource([good_part(), Captured("camera 0 no picture", serial="S2"), bad_part()])
    answers, _ = run_station(toy, store, source)
    found = {part.serial: (part.verdict, part.reasons) for part in parts_of(store)}
    assert found["S2"] == ("not_judged", ("no picture",))
    assert len(answers) == 3


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the station runs after it."""


@pytest.mark.parametrize("where", ["take", "judge", "get", "file", "put"])
@pytest.mark.parametrize("frames", [False, True])
def test_a_station_killed_anywhere_goes_on_where_it_was(
    toy: Path, folder: Path, store: Path, where: str, frames: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the step `where` of the second part: no part is lost, none judged twice."""
    names = [f"{n}.png" for n in range(4)]
    for n, name in enumerate(names):
        write_part(folder, name, bad_part() if n == 2 else good_part(n))
    calls = 0
    owner: Any = filing.Filing if where == "put" else Store
    step = "_put" if where == "put" else where
    real = getattr(owner, step)

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = real(self, *args, **kwargs)
        calls += 1
        if calls == 2:
            raise Killed
        return result

    def items() -> list[object]:
        if frames:
            return [bad_part() if n == 2 else good_part(n) for n in range(4)]
        return [path.name for path in sorted(folder.iterdir())]

    source = ListSource(items(), folder)
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        patch.setattr(Store, "give_back", lambda self, parts: None)
        with pytest.raises(Killed):
            run_station(toy, store, source)
    rest = source if frames else ListSource(items(), folder)
    run_station(toy, store, rest)
    parts = parts_of(store)
    assert len(parts) == 4
    assert sorted(part.verdict or "" for part in parts) == ["anomalous", "good", "good", "good"]
    assert all(part.filed for part in parts)
    assert list(folder.iterdir()) == [] or frames
    assert sound(store)


def test_a_frame_whose_row_was_not_written_is_taken_up(
    toy: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Store, *args: Any, **kwargs: Any) -> int:
        raise Killed

    frame = Captured("camera 0 frame 1", image=bad_part(), serial="S/1, ä")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "take", killed)
        with pytest.raises(Killed):
            run_station(toy, store, ListSource([frame]))
    assert parts_of(store) == []
    run_station(toy, store, ListSource([]))
    (part,) = parts_of(store)
    assert (part.verdict, part.serial) == ("anomalous", "S/1, ä")


def test_a_picture_that_kills_the_process_is_passed_over(
    toy: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}.png" for n in range(5)]
    for n, name in enumerate(names):
        write_part(folder, name, good_part(n))
    real = read_image

    def read(path: Path) -> Any:
        image = real(path)
        if np.array_equal(image, good_part(2)):
            raise Killed
        return image

    monkeypatch.setattr("clipsam.runtime.stream.read_image", read)
    monkeypatch.setattr(Store, "give_back", lambda self, parts: None)
    starts = 0
    while True:
        starts += 1
        try:
            source = ListSource(sorted(path.name for path in folder.iterdir()), folder)
            run_station(toy, store, source)
            break
        except Killed:
            assert starts < 5
    assert starts == 3
    parts = {part.name: part for part in parts_of(store)}
    assert [parts[name].verdict for name in names] == ["good", "good", "not_judged", "good", "good"]
    assert parts["2.png"].reasons == ("crashed",)
    assert sound(store)


def test_an_error_of_ours_costs_one_part_and_no_restart(
    toy: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        write_part(folder, f"{n}.png", good_part(n))
    real = ClipSAM._refine

    def refine(self: ClipSAM, image: Any, *args: Any, **kwargs: Any) -> Any:
        if any(np.array_equal(image, good_part(n)) for n in (1, 4)):
            raise ZeroDivisionError("a mistake")
        return real(self, image, *args, **kwargs)

    monkeypatch.setattr(ClipSAM, "_refine", refine)
    names = [f"{n}.png" for n in range(6)]
    answers, _ = run_station(toy, store, ListSource(names, folder))
    found = {part.name: part for part in parts_of(store)}
    assert {n for n, p in found.items() if p.verdict == "not_judged"} == {"1.png", "4.png"}
    assert found["1.png"].reasons == ("failed",)
    assert "a mistake" in (found["1.png"].message or "")
    assert len(answers) == 6
    assert list(folder.iterdir()) == []


def test_dead_engines_end_the_station_and_condemn_no_part(
    toy: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part(folder, "a.png", good_part())

    def dead(*args: Any) -> Any:
        raise SessionError("The device is gone.")

    with monkeypatch.context() as patch:
        patch.setattr("clipsam.runtime.stream.find_looks", dead)
        patch.setattr(ClipSAM, "_run_blank", dead)
        for _ in range(4):
            with pytest.raises(SessionError, match="device is gone"):
                run_station(toy, store, ListSource(["a.png"], folder))
    (part,) = parts_of(store)
    assert (part.state, part.attempts) == ("taken", 0)
    run_station(toy, store, ListSource([]))
    assert [part.verdict for part in parts_of(store)] == ["good"]


def test_a_picture_that_went_away_while_the_station_was_down(
    toy: Path, folder: Path, store: Path
) -> None:
    with Store(store, create=True) as opened:
        opened.take("gone.png", "object", picture=str(folder / "gone.png"))
        opened.take("camera 0 frame 1", "object")
        other = write_part(folder, "other.png", good_part(9))
        opened.take("other.png", "object", picture=str(other), sha256="ab", file_mtime_ns=1)
    run_station(toy, store, ListSource([]))
    assert [part.reasons for part in parts_of(store)] == [("missing",)] * 3
    assert other.exists()  # another picture of that name is not ours to move


def test_without_room_pictures_are_dropped_and_verdicts_go_on(toy: Path, store: Path) -> None:
    options = Options(keep=Keep(min_free=1 << 62))
    answers, health = run_station(toy, store, ListSource([good_part(), bad_part()]), options)
    assert [part.verdict for part in answers] == ["good", "anomalous"]
    parts = parts_of(store)
    assert [part.picture for part in parts] == [None, None]
    assert all(part.sha256 for part in parts)
    assert "pictures are dropped" in health.alarms["disk"][1]
    with Store(store) as opened:
        assert [kind for _, kind, _ in opened.events()] == ["disk"]


@pytest.mark.parametrize("steps", [("take",), ("judge",), ("take", "judge", "add_judged")])
def test_while_no_row_can_be_written_verdicts_go_on_and_rows_follow(
    toy: Path, folder: Path, store: Path, steps: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    def refuse(name: str) -> Any:
        real = getattr(Store, name)

        def step(self: Store, *args: Any, **kwargs: Any) -> Any:
            if full:
                raise DiskFullError("full: free some space.")
            return real(self, *args, **kwargs)

        return step

    for name in steps:
        monkeypatch.setattr(Store, name, refuse(name))

    def room() -> None:
        nonlocal full
        full = False

    names: list[object] = ["0.png", "1.png", "2.png"]
    for n in range(3):
        write_part(folder, f"{n}.png", good_part(n))
    write_part(folder, "3.png", bad_part())
    source = ListSource([*names, room, "3.png"], folder)
    answers, health = run_station(toy, store, source)
    assert [part.verdict for part in answers] == ["good", "good", "good", "anomalous"]
    assert len(parts_of(store)) == 4
    assert {part.name: part.verdict for part in parts_of(store)} == {
        part.name: part.verdict for part in answers
    }
    assert "store" not in health.alarms
    assert list(folder.iterdir()) == []
    assert sound(store)


def test_a_callback_that_fails_does_not_stop_the_line(toy: Path, store: Path) -> None:
    calls: list[int] = []

    def fails(part: Any) -> None:
        calls.append(part.id)
        raise OSError("the wire is cut")

    def prepare(station: Station) -> None:
        station._answers = [fails, *station._answers]

    answers, _ = run_station(toy, store, ListSource([good_part(1), good_part(2)]), prepare=prepare)
    assert calls == [part.id for part in answers] == [1, 2]
    with Store(store) as opened:
        assert ("answers", "OSError: the wire is cut") in [event[1:] for event in opened.events()]


def test_a_picture_that_cannot_be_moved_stays_and_is_said(
    toy: Path, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OutputError(f"{target} could not be written (Permission denied): check it.")

    monkeypatch.setattr(filing, "move", refuse)
    path = write_part(folder, "a.png", bad_part())
    _, health = run_station(toy, store, ListSource(["a.png"], folder))
    (part,) = parts_of(store)
    assert (part.filed, part.picture_path(store)) == (True, path)
    assert path.exists()
    assert "Permission denied" in health.alarms["pictures"][1]
    with Store(store) as opened:
        assert check(opened) == []
        assert not [file for file in opened.pictures.rglob("*") if file.is_file()]


def test_told_to_stop_it_judges_what_is_under_way_and_takes_no_more(
    toy: Path, folder: Path, store: Path
) -> None:
    stations: list[Station] = []
    names: list[object] = []
    for n in range(6):
        write_part(folder, f"{n}.png", good_part(n))
        names.append(f"{n}.png")
    names.insert(3, lambda: stations[0].stop())
    run_station(toy, store, ListSource(names, folder), prepare=stations.append)
    parts = parts_of(store)
    assert [part.state for part in parts] == ["judged"] * 3
    assert len(list(folder.iterdir())) == 3


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="its file names are Unicode")
@pytest.mark.parametrize("leave", [False, True])
def test_names_that_are_no_text_do_not_stop_the_line(
    toy: Path, folder: Path, store: Path, leave: bool
) -> None:
    folder_name = os.fsencode(folder) + b"/b\xff\xe4.png"
    good = write_part(folder, "plain.png", good_part(1)).read_bytes()
    torn = os.fsdecode(os.fsencode(folder) + b"/\xfe.png")
    Path(os.fsdecode(folder_name)).write_bytes(good)
    Path(torn).write_bytes(b"no picture")
    source = FolderSource(
        folder, lambda kind, message: None, lambda name, state: False, rescan=0.1, patience=0.5
    )
    answers: list[Part] = []

    def stop_after_three(part: Part) -> None:
        answers.append(part)
        if len(answers) == 3:
            stations[0].stop()

    stations: list[Station] = []

    def prepare(station: Station) -> None:
        stations.append(station)
        station._answers = [stop_after_three]

    run_station(toy, store, source, Options(keep=Keep(leave=leave)), prepare)
    found = {part.name: part for part in parts_of(store)}
    assert set(found) == {"plain.png", "b\\udcff\\udce4.png", "\\udcfe.png"}
    assert found["\\udcfe.png"].reasons == ("damaged",)
    json.dumps([answer_of(part) for part in answers]).encode()
    assert sound(store)


def test_a_link_is_kept_as_what_it_leads_to(
    toy: Path, folder: Path, store: Path, tmp_path: Path
) -> None:
    real = write_part(tmp_path / "elsewhere", "real.png", bad_part())
    (folder / "link.png").symlink_to("../elsewhere/real.png")
    run_station(toy, store, ListSource(["link.png"], folder))
    (part,) = parts_of(store)
    picture = part.picture_path(store)
    assert picture is not None
    assert (read_image(picture) == bad_part()).all()
    assert real.exists()
    assert not os.path.lexists(folder / "link.png")


def test_a_path_that_cannot_be_one_is_a_part_that_is_not_judged(toy: Path, store: Path) -> None:
    source = PathSource(Lines(io.StringIO("a\0b.png\n\udcff.png\tS\udcff\n")))
    run_station(toy, store, source)
    assert [part.verdict for part in parts_of(store)] == ["not_judged"] * 2
    assert parts_of(store)[1].serial == "S\\udcff"


def test_a_row_that_somebody_removed_does_not_hold_up_the_others(
    toy: Path, folder: Path, store: Path
) -> None:
    def remove() -> None:
        with Store(store) as opened, opened.transaction() as connection:
            connection.execute("DELETE FROM parts WHERE id = 1")

    stations: list[Station] = []

    def prepare(station: Station) -> None:
        stations.append(station)
        real = station.store.judge

        def judge(part: int, **values: Any) -> None:
            if part == 1:
                remove()
            real(part, **values)

        station.store.judge = judge  # type: ignore[method-assign]

    names: list[object] = [f"{n}.png" for n in range(4)]
    for n, name in enumerate(names):
        write_part(folder, str(name), good_part(n))
    answers, health = run_station(toy, store, ListSource(names, folder), prepare=prepare)
    assert [part.name for part in answers] == names
    assert [part.name for part in parts_of(store)] == names[1:]
    assert "store" not in health.alarms
