"""Retention, quota, the check, the export and labels: what a person does with a store."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from clipsam.runtime.cli import main
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.station import upkeep
from clipsam.runtime.station.pictures import Keep, Pictures, map_of, move
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import check, prune

OLD, NEW = "2020-01-01T00:00:00.000Z", "2999-01-01T00:00:00.000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with old and new parts; pictures of 1000 bytes."""
    path = tmp_path / "li%ne_.db"
    with Store(path, create=True) as store:
        add(store, OLD, "good")
        add(store, OLD, "anomalous")
        add(store, OLD, "good", label="defective")
        add(store, NEW, "good")
        add(store, NEW, "anomalous")
        add(store, NEW, "not_judged", reasons=["unreadable"])
        store.take("waiting.png", "object", taken_at=OLD)
    return path


def add(
    store: Store, taken_at: str, verdict: str, label: str | None = None, **values: object
) -> None:
    number = store.take("=part, ä.png", "object", taken_at=taken_at)
    store.judge(number, verdict=verdict, **values)
    pictures = Pictures(store.pictures)
    picture = pictures.place(number, "a/part.png", taken_at, ".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(os.urandom(1000))
    store.file(number, pictures.relative(picture))
    if label:
        store.label(number, label)


def kept(path: Path) -> list[int]:
    with Store(path, read_only=True) as store:
        return [part.id for part in store.parts("picture IS NOT NULL")]


@pytest.mark.parametrize("rule", [{"retain": 30}, {"quota": 0}])
def test_nobody_labels_a_part_whose_pictures_go(
    path: Path, rule: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = []
    remove = upkeep._remove

    def person(store: Store, files: list[str]) -> upkeep.Pruned:
        """Labels every part from another process, just before pictures go."""
        with (
            suppress(sqlite3.OperationalError),  # who labels waits for the transaction to end
            closing(sqlite3.connect(path, timeout=0)) as other,
            other,
        ):
            other.execute("UPDATE parts SET label = 'good'")
            labelled.append(files)
        return remove(store, files)

    monkeypatch.setattr(upkeep, "_remove", person)
    with Store(path) as store:
        assert prune(store, **rule).pictures > 0
        assert labelled == []
        assert check(store) == []


def test_a_picture_that_moves_meanwhile_has_no_size(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(path) as store:
        before = upkeep.size_of(store.pictures)
        there = list(upkeep._files(store.pictures))
        monkeypatch.setattr(upkeep, "_files", lambda folder: there)
        there[0].unlink()  # by the station, after the folder was searched
        assert upkeep.size_of(store.pictures) == before - 1000


def test_old_parts_go_unless_a_person_labelled_them_or_they_wait(path: Path) -> None:
    with Store(path) as store:
        done = prune(store, retain=30)
        assert (done.parts, done.pictures, done.bytes) == (2, 2, 2000)
        assert [part.id for part in store.parts()] == [3, 4, 5, 6, 7]
        assert check(store) == []
        assert prune(store, retain=30).parts == 0


@pytest.mark.parametrize(("quota", "left"), [(6000, 6), (5999, 5), (4000, 4), (3000, 3), (0, 1)])
def test_a_quota_takes_good_pictures_first_and_labelled_ones_never(
    path: Path, quota: int, left: int
) -> None:
    with Store(path) as store:
        prune(store, quota=quota)
        assert check(store) == []
        assert len(list(store.parts())) == 7
    order = [1, 4, 2, 5, 6]  # as they go
    assert kept(path) == sorted([3, *order[len(order) + 1 - left :]])


def test_a_picture_elsewhere_is_never_removed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "camera.png").write_bytes(b"x" * 9000)
    with Store(path) as store:
        number = store.take("camera.png", "object", taken_at=OLD)
        store.judge(number, verdict="good")
        store.file(number, str(tmp_path / "camera.png"))
        prune(store, retain=30, quota=0)
        assert store.get(number) is None
    assert (tmp_path / "camera.png").exists()


def test_the_check_names_what_is_wrong(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "check", str(path)]) == 0
    counts = "2 anomalous, 3 good, 1 not judged, 1 waiting to be judged"
    assert capsys.readouterr().out == f"7 parts ({counts}); nothing found wrong.\n"
    folder = path.with_name("li%ne_.pictures")
    next(folder.rglob("00000004*")).unlink()
    (folder / "stray.png").write_bytes(b"x")
    assert main(["store", "check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "part 4: " in out
    assert "stray.png belongs to no part" in out
    assert "2 found wrong." in out


def test_the_check_does_not_mind_a_station_at_work(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.parts

    def parts(self: Store, *args: object) -> object:
        """The rows; once they are read, a part's picture is moved."""
        found = list(real(self, *args))  # type: ignore[arg-type]
        picture = found[0].picture_path(path)
        assert picture is not None
        picture.rename(picture.with_name("moved.png"))
        store.file(found[0].id, Pictures(store.pictures).relative(picture.with_name("moved.png")))
        return iter(found)

    with Store(path) as store:
        monkeypatch.setattr(Store, "parts", parts)
        assert check(store) == []


def test_every_format_holds_every_part(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("all.csv", "all.jsonl", "all.parquet"):
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        assert main(["store", "export", str(path), "-o", str(path.with_name(name))]) == 0
        assert capsys.readouterr().out.startswith("7 parts in ")
    rows = [json.loads(line) for line in path.with_name("all.jsonl").read_text().splitlines()]
    with path.with_name("all.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [int(row["id"]) for row in table] == list(range(1, 8))
    assert table[0]["name"] == rows[0]["name"] == "=part, ä.png"
    assert json.loads(table[5]["reasons"]) == rows[5]["reasons"] == ["unreadable"]
    import pyarrow.parquet

    arrow = pyarrow.parquet.read_table(path.with_name("all.parquet")).to_pylist()
    assert [row["verdict"] for row in arrow] == [row["verdict"] for row in rows]
    assert arrow[2]["label"] == "defective"


def test_a_selection_can_be_printed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--since", "2999-01-01T00:00+00:00", "--until", "2999-01-02", "--verdict", "good"]
    assert main(["store", "export", str(path), *asked]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [4]
    assert main(["store", "export", str(path), "--label", "defective", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("3,")


def test_what_an_export_cannot_do_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "export", str(path), "-o", str(path.with_name("all.xlsx"))]) == 1
    assert "does not say its format" in capsys.readouterr().err
    assert main(["store", "export", str(path.with_name("no.db"))]) == 1
    assert "is no store" in capsys.readouterr().err
    for wrong in (
        ["export", "--since", "yesterday"],
        ["export", "--since", "9999-12-31T23:00:00-12:00"],
        ["prune", "--retain", "9999999999d"],
        ["prune", "--retain", "99999999d"],
        ["prune"],
        ["prune", "--retain", "90"],
        ["prune", "--quota", "-1GB"],
        ["export", "--format", "parquet"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["store", wrong[0], str(path), *wrong[1:]])


def test_the_prune_command_says_what_went(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "prune", str(path), "--retain", "30d", "--quota", "1KB"]) == 0
    assert capsys.readouterr().out == "2 parts and 5 files removed, 0.0 MB\n"


def test_labels_from_the_command_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(path), "4", "defective", "--by", "anna"]) == 0
    with Store(path) as store:
        assert (store.find("4").label, store.find("4").labelled_by) == ("defective", "anna")
    assert main(["label", str(path), "4", "none"]) == 0
    with Store(path) as store:
        assert store.find("4").label is None
        prune(store, quota=0)
    assert main(["label", str(path), "4", "good"]) == 0
    assert "no picture was kept" in capsys.readouterr().out
    assert main(["label", str(path), "99", "good"]) == 1
    assert "no part" in capsys.readouterr().err


def test_many_parts_are_labelled_at_once_or_none(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", str(path), "2-4", "6", "good"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    with Store(path) as store:
        assert [part.id for part in store.parts("label = 'good'")] == [2, 3, 4, 6]
    for wrong in ("99", "50-60", "5-1"):
        assert main(["label", str(path), "1", wrong, "defective"]) == 1
        assert "no part" in capsys.readouterr().err
    with Store(path) as store:
        assert store.find("1").label is None


def test_a_share_of_the_good_pictures_is_kept_and_all_others() -> None:
    keep = Keep(good=0.1)
    wanted = [keep.wants("good", number) for number in range(10_000)]
    assert wanted == [keep.wants("good", number) for number in range(10_000)]
    assert 900 < sum(wanted) < 1100
    assert all(keep.wants(v, n) for v in ("anomalous", "not_judged") for n in range(100))
    assert all(Keep(good=1.0).wants("good", n) for n in range(100))
    assert not any(Keep(good=0.0).wants("good", n) for n in range(100))


def test_an_incoming_frame_is_whole_and_knows_its_serial(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "line.pictures")
    assert list(pictures.incoming()) == []
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path, _ = pictures.write_incoming(image, "A/1~ä %")
    pictures.write_incoming(image, None)
    (path.parent / ".half.png").write_bytes(b"x")
    assert [serial for _, serial in pictures.incoming()] == ["A/1~ä %", None]
    assert (read_image(path) == image).all()
    assert not (path.parent / ".half.png").exists()


def test_a_map_is_made_small_and_keeps_its_scale(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "line.pictures")
    score_map = np.zeros((300, 2000), np.float32)
    score_map[:, :1000] = 1
    pictures.write_map(tmp_path / "line.pictures/1.png", score_map)
    path = map_of(tmp_path / "line.pictures/1.png")
    found = read_image(path)
    assert found.shape == (77, 512, 3)
    assert found[:, 10].min() == 255
    assert found[:, -10].max() == 0
    assert pictures.relative(path) == "line.pictures/1.map.png"


def test_names_cannot_leave_the_folder_of_pictures(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "line.pictures")
    for name in ("../../etc/passwd", "/abs/a.png", "a\0b.png", "x" * 300 + ".png", "..", ".png"):
        path = pictures.place(1, name, NEW, ".png")
        assert path.parent == tmp_path / "line.pictures/2999-01-01"
        assert len(path.name) < 100


def test_a_move_to_another_disk_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if not self.name.startswith("."):
            raise OSError(18, "Invalid cross-device link")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    (tmp_path / "a.png").write_bytes(b"abc")
    move(tmp_path / "a.png", tmp_path / "there/b.png")
    assert (tmp_path / "there/b.png").read_bytes() == b"abc"
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_a_wrong_label_is_refused(path: Path) -> None:
    with Store(path) as store, pytest.raises(OptionError):
        store.label(1, "good ")
