"""`clipsam calibrate` on the toy bundle, and inspections with what it wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.cli_run import Ran, lines, save
from support.toy_bundle import build_toy_bundle

from clipsam.runtime import Calibration, CalibrationError, ClipSAM, InspectOptions, OptionError
from clipsam.runtime.cli import main


def good(seed: int) -> NDArray[np.uint8]:
    """A dark part with blotches of its own."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(25, 60, (10, 12)), np.ones((12, 12)))
    picture = coarse[..., None] + rng.normal(0, 2, (120, 144, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def bad(seed: int) -> NDArray[np.uint8]:
    picture = good(seed)
    picture[40:70, 50:90] = 245
    return picture


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for name, make, count in (("good", good, 34), ("bad", bad, 6)):
        (folder / name).mkdir()
        for i in range(count):
            save(folder / name / f"{i:02}.png", make(i if name == "good" else 100 + i))
    save(folder / "good/00 again.png", good(0))
    (folder / "good/broken.png").write_bytes(b"no image")
    return folder


def run(capfd: pytest.CaptureFixture[str], *args: object) -> Ran:
    capfd.readouterr()
    code = main([*map(str, args), "--threads", "1"])
    return Ran(code, *capfd.readouterr())


@pytest.fixture
def made(toy: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    output = tmp_path / "nut.calibration"
    done = run(
        capfd, "calibrate", toy, "--good", parts / "good", "--defective", parts / "bad",
        "--category", "metal nut", "--false-alarms", 0.09, "--planted", 4, "--output", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "0 of 34 do" in done.out
    assert "1 pictures show a part that was seen already" in done.out
    assert "Of 6 truly defective parts: 6 found" in done.out
    assert "broken.png is damaged or not an image" in done.err
    names = ["nut.calibration", "nut.planted.png", "nut.scores.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    return output


def test_inspections_take_its_limit_its_reference_and_its_word(
    made: Path, toy: Path, parts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = Calibration.read(made)
    assert (found.category, found.promise.parts, found.promise.duplicates) == ("metal nut", 34, 1)
    assert found.reference is not None
    with ClipSAM.open(toy, threads=1, calibration=made) as model:
        pictures = [good(50), bad(51), np.full((120, 144, 3), 45, np.uint8)]
        results = [model.inspect(picture) for picture in pictures]
        assert [r.verdict for r in results] == ["good", "anomalous", "not_judged"]
        for result in results:
            assert (result.calibration, result.category) == (found.id, "metal nut")
            assert result.limit == found.limit
            assert result.distance is not None
            assert (result.score > result.limit) == result.anomalous == bool(result.regions)
        for part, alone in zip(model.inspect_many(pictures, batch=2), results, strict=True):
            assert part.result().verdict == alone.verdict
            assert part.result().score == pytest.approx(alone.score, abs=1e-5)
        with pytest.raises(OptionError, match="calibration was made for 'metal nut', not 'bottle'"):
            model.inspect(pictures[0], "bottle")
    done = run(
        capfd, "inspect", toy, parts / "bad", "--calibration", made, "--output", tmp_path / "out"
    )
    assert (done.code, done.out[:19]) == (0, "0 good, 6 anomalous")
    assert {row["calibration"] for row in lines(tmp_path / "out")} == {found.id}


def test_it_holds_for_its_bundle_and_options_alone(made: Path, toy: Path, tmp_path: Path) -> None:
    other = build_toy_bundle(tmp_path / "other", name="another")
    with pytest.raises(CalibrationError, match="was made with the bundle"):
        ClipSAM.open(other, calibration=made)
    with pytest.raises(CalibrationError, match="made with another --roi"):
        ClipSAM.open(toy, options=InspectOptions(roi=(0, 0, 50, 50)), calibration=made)
    with ClipSAM.open(toy, options=InspectOptions(limit=50), calibration=made) as model:
        assert model.inspect(bad(51)).limit == 50


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--false-alarms": 0.01}, r"36 good parts cannot promise 1 % .* which takes 299: .* 0\.0"),
        (
            {"--good": "bad"},
            "6 good parts: too few to say anything. Give at least 8, and 299 for 1 %",
        ),
        ({"--category": "gear"}, "does not know the category 'gear'"),
        ({"--good": "none"}, "none is no folder: give one"),
        (
            {"--roi": "0,0,500,50", "--false-alarms": 0.09},
            r"00 again.png: The image .* reaches beyond",
        ),
        ({"--output": "."}, r"\. is a folder: give the name of a file"),
    ],
    ids=str,
)
def test_what_cannot_be_promised_is_refused(
    toy: Path,
    parts: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, Any],
    sentence: str,
) -> None:
    (tmp_path / "here").mkdir()
    given = {"--good": "good", "--output": tmp_path / "here/x", **change}
    given["--good"] = parts / str(given["--good"])
    done = run(capfd, "calibrate", toy, *(word for pair in given.items() for word in pair))
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert re.search(sentence, done.err)
    assert list((tmp_path / "here").iterdir()) == []
