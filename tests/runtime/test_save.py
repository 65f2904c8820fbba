"""Which files `clipsam inspect --save` writes, and in what form large score maps are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from support.cli_run import Run, lines, listing, make_images, runner
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime import ClipSAM
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.images import overlay as module
from clipsam.runtime.images.overlay import overlay
from clipsam.runtime.images.reader import write_score_tiff
from clipsam.runtime.results.names import ENDINGS, Save

BAD = {"bad", "line 1/part.v2"}
ALL = {"bad", "good", "line 1/part.v2", "line 1/äöü/ok"}


@pytest.fixture
def run(toy: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(toy, capfd)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "images")


def files(stems: set[str], *kinds: str) -> list[str]:
    return sorted([f"{stem}.{kind}" for stem in stems for kind in kinds] + ["results.jsonl"])


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        ("none", files(set())),
        ("overlay", files(ALL, "overlay.png")),
        ("score,mask", files(ALL, "score.tiff", "mask.png")),
        ("anomalous", files(BAD, "overlay.png", "score.tiff", "mask.png")),
        ("overlay,anomalous", files(BAD, "overlay.png")),
    ],
)
def test_only_what_is_asked_for_is_written(
    run: Run, images: Path, tmp_path: Path, save: str, expected: list[str]
) -> None:
    output = tmp_path / "out"
    done = run(images, "--output", output, "--save", save)
    assert (done.code, done.err) == (0, "")
    assert listing(output) == expected
    assert [row["verdict"] for row in lines(output)] == ["anomalous", "good"] * 2


def test_files_of_an_earlier_judgement_do_not_stay(run: Run, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(images, "--output", output).code == 0
    assert run(images, "--output", output, "--save", "mask").code == 0
    assert listing(output) == files(ALL, "mask.png")


def test_resuming_with_other_files_writes_them(run: Run, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(images, "--output", output, "--save", "none").code == 0
    again = run(images, "--output", output, "--save", "none", "--resume")
    assert "4 done before" in again.out
    assert run(images, "--output", output, "--resume").code == 0
    assert len(listing(output)) == 1 + len(ALL) * len(ENDINGS)


@pytest.mark.parametrize("text", ["", "all", "overlay,none", "mask,mask", "overlay mask"])
def test_other_words_are_refused(run: Run, images: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(OptionError, match="save="):
        Save.parse(text)
    with pytest.raises(SystemExit, match="2"):
        run(images, "--output", tmp_path / "out", "--save", text)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["none", "overlay", "mask,score", "overlay,mask,score,anomalous"])
def test_a_choice_says_itself(text: str) -> None:
    assert str(Save.parse(text)) == text
    assert Save.parse("anomalous") == Save.parse("overlay,mask,score,anomalous")


def test_a_large_score_map_is_small_and_both_readers_agree(tmp_path: Path) -> None:
    y, x = np.mgrid[:2100, :2000].astype(np.float32)
    score = np.exp(-((x - 900) ** 2 + (y - 700) ** 2) / 1e5).astype(np.float32)
    before = score.copy()
    write_score_tiff(tmp_path / "score.tiff", score)
    np.testing.assert_array_equal(score, before)
    assert (tmp_path / "score.tiff").stat().st_size < score.nbytes / 5
    by_opencv = cv2.imread(str(tmp_path / "score.tiff"), cv2.IMREAD_UNCHANGED)
    by_tifffile = tifffile.imread(tmp_path / "score.tiff")
    assert by_opencv is not None
    np.testing.assert_array_equal(by_opencv, by_tifffile)
    assert by_tifffile.dtype == np.float32
    assert np.abs(by_tifffile - score).max() <= 0.5 / 16384


def test_an_overlay_is_the_same_in_bands(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = bright_square(300, 200)
    with ClipSAM.open(toy, threads=1) as model:
        result = model.inspect(image)
    assert result.anomalous
    whole = overlay(image, result)
    monkeypatch.setattr(module, "_ROWS", 7)
    np.testing.assert_array_equal(overlay(image, result), whole)


def test_tiles_and_zoom_are_in_the_rows_and_decide_what_is_resumed(
    run: Run, tmp_path: Path
) -> None:
    image = plain_part(600, 900)
    image[300:308, 400:408] = 255
    cv2.imwrite(str(tmp_path / "part.png"), image)
    args = (tmp_path / "part.png", "--output", tmp_path / "out", "--resume", "--save", "none")
    assert run(*args).code == 0
    assert "1 done before" in run(*args, "--tiles", "off").out
    assert "0 good, 1 anomalous" in run(*args, "--tiles", "4x3", "--zoom", "auto").out
    first, second = lines(tmp_path / "out")
    assert (first["tiles"], first["crops"], first["verdict"]) == ("off", 0, "good")
    assert (second["tiles"], second["crops"], second["verdict"]) == ("4x3", 1, "anomalous")
    with pytest.raises(SystemExit, match="2"):
        run(*args, "--tiles", "many")
