"""What people said of parts feeds the next calibration, and that one the next watch."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.line_station import bad_part, parts_of, write_part
from support.toy_bundle import plain_part

from clipsam.runtime.cli import main
from clipsam.runtime.core.errors import StoreError
from clipsam.runtime.station.labelled import labelled_pictures
from clipsam.runtime.station.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of two good parts and a defective one, all labelled, and one that nobody labelled."""
    path = tmp_path / "line.db"
    with Store(path, create=True) as opened:
        for n, label in enumerate(["good", "defective", None, "good"]):
            picture = write_part(tmp_path / "line.pictures", f"{n}.png", plain_part(level=30 + n))
            number = opened.take(f"{n}.png", "nut" if n == 3 else "object")
            opened.judge(number, verdict="good")
            opened.file(number, picture.relative_to(tmp_path).as_posix())
            if label:
                opened.label(number, label, "anna")
    return path


def test_pictures_come_by_label_and_category(store: Path) -> None:
    found = labelled_pictures(store)
    assert [p.name for p in found.good] == ["0.png", "3.png"]
    assert [p.name for p in found.defective] == ["1.png"]
    assert [p.name for p in labelled_pictures(store, "nut").good] == ["3.png"]


def test_pictures_that_are_gone_are_counted_and_a_store_without_good_ones_refused(
    store: Path,
) -> None:
    found = labelled_pictures(store)
    found.good[0].unlink()
    assert labelled_pictures(store).gone == 1
    with pytest.raises(StoreError, match="1 labelled parts have no picture any more"):
        labelled_pictures(store, "object")
    with pytest.raises(StoreError, match="no picture of a part that a person called good"):
        labelled_pictures(store, "bottle")


def test_from_watch_to_labels_to_calibration_to_watch(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "line.db"
    random = np.random.default_rng(0)

    def noisy(n: int) -> NDArray[np.uint8]:
        noise = random.integers(0, 12, (60, 80, 3), np.uint8)
        return np.asarray(plain_part(60, 80, 28 + n % 9) + noise)

    def watch(name: str, *limit: str) -> list[dict[str, object]]:
        capsys.readouterr()
        paths = sorted((tmp_path / name).glob("*.png"))
        from clipsam.runtime.commands import watch as command
        from clipsam.runtime.station.sources.lines import Lines, PathSource

        source = PathSource(Lines(io.StringIO("".join(f"{path}\n" for path in paths))))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "_source", lambda args, store, health: source)
            assert main(["watch", str(toy), "-", "--store", str(store), *limit]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    for n in range(40):
        write_part(tmp_path / "first", f"{n:02d}.png", noisy(n))
    assert len(watch("first", "--uncalibrated")) == 40
    for part in range(1, 41):
        assert main(["label", str(store), str(part), "good"]) == 0
    asked = ["--store", str(store), "--false-alarms", "0.1", "--reference", "4", "--planted", "6"]
    calibration = tmp_path / "line.calibration"
    assert main(["calibrate", str(toy), *asked, "--output", str(calibration)]) == 0
    for n in range(3):
        write_part(tmp_path / "second", f"{n}.png", noisy(50 + n))
    write_part(tmp_path / "second", "bad.png", bad_part())
    answers = watch("second", "--calibration", str(calibration))
    assert [a["verdict"] for a in answers].count("anomalous") >= 1
    later = parts_of(store)[40:]
    assert len({part.calibration for part in later}) == 1
    assert later[0].calibration
    assert later[0].limit != parts_of(store)[0].limit


def test_calibrate_says_what_it_needs(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(toy), "--output", str(tmp_path / "x.calibration")]) == 1
    assert "--good FOLDER, --store line.db" in capsys.readouterr().err
