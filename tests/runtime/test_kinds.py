"""Regions have names, some kinds are asked for and others ignored: all of it on the toy."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.cli_run import Run, runner
from support.toy_bundle import (
    CYAN,
    MAGENTA,
    YELLOW,
    add_naming,
    build_toy_bundle,
    coloured_squares,
    hashes,
)

from clipsam.runtime import Bundle, BundleError, ClipSAM, InspectOptions, OptionError, Result
from clipsam.runtime.bundle import NAMING, Manifest, write_manifest
from clipsam.runtime.calibration.record import Calibration, Promise
from clipsam.runtime.core.errors import CalibrationError
from clipsam.runtime.images.caption import captioned
from clipsam.runtime.images.reader import write_png
from clipsam.runtime.stages.naming import UNKNOWN

THREE = coloured_squares(YELLOW, CYAN, MAGENTA)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_naming(build_toy_bundle(tmp_path_factory.mktemp("named") / "bundle"))


def inspect(bundle: Path, image: np.ndarray = THREE, **options: object) -> Result:
    with ClipSAM.open(bundle, options=InspectOptions(**options)) as model:  # type: ignore[arg-type]
        return model.inspect(image)


def words(result: Result) -> dict[str, str]:
    """Where regions lie -> what they are called."""
    sides = ("left", "middle", "right")
    return {sides[int(region.centroid[0] // 80)]: region.kind for region in result.regions}


def test_every_region_has_its_name(named: Path) -> None:
    result = inspect(named)
    assert words(result) == {"left": "scratch", "middle": "printed text", "right": UNKNOWN}
    for region in result.regions:
        assert sum(region.kinds.values()) == pytest.approx(1, abs=0.05)
        assert list(region.kinds.values()) == sorted(region.kinds.values(), reverse=True)
    assert result.ignored == ()


def test_names_change_nothing_else_to_the_bit(named: Path, toy: Path) -> None:
    with_names, without = inspect(named), inspect(toy)
    np.testing.assert_array_equal(with_names.score_map, without.score_map)
    np.testing.assert_array_equal(with_names.mask, without.mask)
    assert (with_names.score, with_names.verdict) == (without.score, without.verdict)
    assert tuple(replace(r, kinds={}) for r in with_names.regions) == without.regions
    assert {r.kind for r in without.regions} == {""}


def test_only_what_is_looked_for_counts_and_the_rest_is_shown_as_ignored(named: Path) -> None:
    result = inspect(named, look_for=("scratch",))
    assert words(result) == {"left": "scratch"}
    assert sorted(region.kind for region in result.ignored) == ["printed text", UNKNOWN]
    assert result.score_map[:, 85:].max() < 0.2
    assert not result.mask[:, 85:].any()
    assert result.verdict == "anomalous"
    assert result.look_for == ("scratch",)
    np.testing.assert_array_equal(result.mask[:, :70], inspect(named).mask[:, :70])


def test_what_is_ignored_is_no_defect_and_what_is_unknown_stays_one(named: Path) -> None:
    result = inspect(named, ignore_kinds=("printed text", "scratch"))
    assert words(result) == {"right": UNKNOWN}
    quiet = inspect(named, coloured_squares(CYAN), ignore_kinds=("printed text",))
    assert (quiet.verdict, quiet.regions) == ("good", ())
    (text,) = quiet.ignored
    assert text.kind == "printed text"
    assert text.box == (20, 40, 40, 40)
    assert inspect(named, ignore_kinds=("unknown",)).ignored[0].kind == UNKNOWN


def test_the_score_of_what_is_asked_for_is_the_one_that_it_has_alone(named: Path) -> None:
    alone = inspect(named, coloured_squares(YELLOW))
    asked = inspect(named, coloured_squares(YELLOW, CYAN), look_for=("scratch",))
    assert asked.score == alone.score
    assert inspect(named, coloured_squares(CYAN), look_for=("scratch",)).score < 0.2


def test_a_roi_moves_what_is_ignored_too(named: Path) -> None:
    roi = (80, 20, 100, 100)
    (text,) = inspect(named, roi=roi, ignore_kinds=("printed text",)).ignored
    x, y, width, height = text.box
    assert x <= 105 <= 130 <= x + width
    assert y <= 50 <= 70 <= y + height


def test_the_results_of_a_line_have_the_same_names(named: Path) -> None:
    options = InspectOptions(look_for=("scratch",))
    with ClipSAM.open(named, options=options) as model:
        (part,) = model.inspect_many([THREE])
    assert part.result().regions == inspect(named, look_for=("scratch",)).regions
    assert part.result().ignored == inspect(named, look_for=("scratch",)).ignored


def test_json_brings_names_and_ignored_regions_back(named: Path) -> None:
    result = inspect(named, look_for=("scratch",))
    back = Result.from_json(result.to_json(), result.score_map, result.mask)
    assert back == result
    assert json.loads(result.to_json())["ignored"][0]["kinds"]


def test_a_picture_tells_what_was_ignored(named: Path) -> None:
    plain, steered = inspect(named), inspect(named, look_for=("scratch",))
    tall = [captioned(THREE, result, "part.png").shape[0] for result in (plain, steered)]
    assert tall[1] < tall[0] + 40  # two regions less, two lines about them more


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"look_for": ("scrach",)}, "did you mean 'scratch'"),
        ({"ignore_kinds": ("banana",)}, "clipsam words --defects"),
        ({"look_for": ("scratch",), "ignore_kinds": ("scratch",)}, "both looked for and ignored"),
        ({"look_for": ("",)}, "give one to 200 letters"),
        ({"look_for": "scratch"}, "cannot be a word of look_for"),
    ],
)
def test_words_that_cannot_be_asked_for_are_refused(
    named: Path, options: dict[str, tuple[str, ...]], what: str
) -> None:
    with pytest.raises(OptionError, match=what):
        inspect(named, THREE, **options)


def test_a_bundle_without_names_says_how_to_get_them(toy: Path) -> None:
    with pytest.raises(OptionError, match="no words for defects: build it again"):
        inspect(toy, look_for=("scratch",))


def test_a_calibration_keeps_what_was_asked_for(named: Path) -> None:
    settings = InspectOptions(look_for=("scratch",)).settings()
    made = Calibration(
        Bundle.open(named).id, "object", 0.3, Promise(0.1, 0.9, 20, 0, 0), {}, settings
    )
    kept = Calibration.from_bytes(made.to_bytes())
    with ClipSAM.open(named, calibration=kept) as model:
        assert words(model.inspect(THREE)) == {"left": "scratch"}
    for other in ({"look_for": ("printed text",)}, {"ignore_kinds": ("scratch",)}):
        with pytest.raises(CalibrationError, match="made with another --"):
            ClipSAM.open(named, options=InspectOptions(**other), calibration=kept)  # type: ignore[arg-type]
    damaged = replace(made, settings={"look_for": "scratch"})
    with pytest.raises(ValueError, match="look_for"):
        Calibration.from_bytes(damaged.to_bytes())


def test_a_look_of_a_calibration_sees_what_is_asked_for_alone(named: Path) -> None:
    with ClipSAM.open(named, options=InspectOptions(look_for=("scratch",))) as model:
        asked, alone = model.observe(coloured_squares(CYAN, YELLOW)), model.observe(THREE[:, :80])
        everything = model.observe(coloured_squares(YELLOW))
    assert asked.score == pytest.approx(everything.score)
    assert len(asked.tokens) < len(everything.tokens)  # without those of the text
    assert len(alone.tokens) == len(everything.tokens)


def test_the_command_line_asks_and_writes_what_it_ignored(
    named: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run: Run = runner(named, capfd)
    write_png(tmp_path / "part.png", THREE)
    out = tmp_path / "out"
    done = run(tmp_path / "part.png", "--look-for", "scratch, unknown", "--output", out)
    assert done.code == 0
    row = json.loads((out / "results.jsonl").read_text().splitlines()[0])
    assert {next(iter(r["kinds"])) for r in row["regions"]} == {"scratch", UNKNOWN}
    assert [next(iter(r["kinds"])) for r in row["ignored"]] == ["printed text"]
    refused = run(tmp_path / "part.png", "--ignore-kind", " , ", "--output", out)
    assert refused.code == 1
    assert "names no kind" in refused.err


def test_a_damaged_file_of_names_is_refused(named: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"

    def with_names(data: bytes) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(named, folder)
        (folder / NAMING).write_bytes(data)
        manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
        write_manifest(folder, replace(manifest, files=hashes(folder)))
        return folder

    good = (named / NAMING).read_bytes()
    assert Bundle.open(with_names(good)).namer is not None
    for bad in (b"", good[: len(good) // 2], b"PK\x03\x04" + good[10:]):
        with pytest.raises(BundleError, match=r"naming\.npz cannot be read"):
            Bundle.open(with_names(bad))
    arrays = dict(np.load(named / NAMING))
    for name, value in (
        ("features", arrays["features"][:, :3]),
        ("features", arrays["features"] * np.float32(np.nan)),
        ("unknown", arrays["unknown"][:2]),
        ("numbers", np.array([0, -1], np.float32)),
        ("token_0", arrays["token_0"][:2]),
        ("words", np.array(["scratch", "scratch"])),
        ("words", np.array(["scratch", "unknown"])),
    ):
        path = tmp_path / "changed.npz"
        np.savez(path, **{**arrays, name: value})
        with pytest.raises(BundleError, match=r"naming\.npz cannot be read"):
            Bundle.open(with_names(path.read_bytes()))
