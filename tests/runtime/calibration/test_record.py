"""The calibration file: there and back, tied to its bundle, and strict about what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsam.runtime import Calibration, CalibrationError, InspectOptions
from clipsam.runtime.calibration.record import Promise
from clipsam.runtime.options import calibrated
from clipsam.runtime.stages.reference import Reference


def example() -> Calibration:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((12, 8)).astype(np.float16)
    ignore = np.zeros((20, 30), np.bool_)
    ignore[3:6, 4:9] = True
    return Calibration(
        "0123456789ab",
        "métal nut",
        0.625,
        Promise(0.049, 0.95, 61, 0, 2),
        {"brightness": (20.5, 80.25), "distance": (-0.01, 0.02)},
        {"min_area": 25.0, "roi": [1, 2, 20, 15]},
        ignore,
        Reference(tokens, np.repeat(np.arange(3, dtype=np.int32), 4), 1.5),
        {"planted": {"found": 3, "of": 4}},
    )


def test_a_calibration_comes_back(tmp_path: Path) -> None:
    made, path = example(), tmp_path / "x.calibration"
    identity = made.write(path)
    back = Calibration.read(path)
    assert back.id == identity == Calibration.read(path).id
    for name in ("bundle", "category", "limit", "promise", "bounds", "settings", "notes"):
        assert getattr(back, name) == getattr(made, name), name
    assert back.reference is not None
    assert made.reference is not None
    np.testing.assert_array_equal(back.reference.tokens, made.reference.tokens)
    np.testing.assert_array_equal(back.reference.parts, made.reference.parts)
    np.testing.assert_array_equal(back.ignore, made.ignore)
    assert back.reference.weight == 1.5
    bare = replace(made, ignore=None, reference=None)
    assert Calibration.from_bytes(bare.to_bytes()).reference is None
    assert Calibration.from_bytes(bare.to_bytes()).id != identity


def test_another_bundle_is_refused() -> None:
    example().check_made_for("0123456789ab")
    with pytest.raises(CalibrationError, match="with the bundle 0123456789ab and this one is ff"):
        example().check_made_for("ff")


def head(change: Callable[[dict[str, Any]], Any]) -> bytes:
    line, _, body = example().to_bytes().partition(b"\n")
    values = json.loads(line)
    change(values)
    return json.dumps(values).encode() + b"\n" + body


def _set(values: dict[str, Any], name: str, value: object) -> None:
    values[name] = value


def _set_array(values: dict[str, Any], name: str, spec: object) -> None:
    values["arrays"][name] = spec


WRONG = {
    "empty": b"",
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a pickle": b"\x80\x04\x95\x10\n.",
    "cut off": example().to_bytes()[:-1],
    "longer": example().to_bytes() + b"\0",
    "a changed byte": example().to_bytes()[:-5] + b"\1" + example().to_bytes()[-4:],
    "a list": b"[]\n",
    "deep": b"[" * 100_000 + b"\n",
    "NaN": head(lambda v: v.update(limit=float("nan"))),
    "a key twice": example().to_bytes().replace(b'{"calibration"', b'{"limit": 1, "calibration"'),
}
for name, value in (
    ("limit", "0.5"),
    ("limit", True),
    ("limit", -1),
    ("limit", 0),
    ("limit", 1e30),
    ("bundle", 3),
    ("category", "two\nlines"),
    ("category", None),
    ("weight", -1),
    ("bounds", {"smell": [0, 1]}),
    ("bounds", {"brightness": [0]}),
    ("bounds", {"brightness": [0, "1"]}),
    ("settings", {"limit": 0.1}),
    ("settings", []),
    ("settings", {"roi": 5}),
    ("settings", {"roi": [0, 0, 9]}),
    ("settings", {"roi": [0, 0, 1, 9]}),
    ("settings", {"roi": [0, 0, 9.5, 9]}),
    ("settings", {"min_area": "large"}),
    ("settings", {"min_area": 0}),
    ("settings", {"mm_per_pixel": True}),
    ("settings", {"tiles": "many"}),
    ("notes", 3),
    ("sha256", "0" * 64),
    ("promise", {}),
    ("arrays", {}),
):
    WRONG[f"{name} {value!r}"] = head(partial(_set, name=name, value=value))
for name, spec in (
    ("tokens", ["float64", 12, 8]),
    ("tokens", ["object", 12, 8]),
    ("tokens", ["float16", 12]),
    ("tokens", ["float16", 1 << 60, 8]),
    ("tokens", ["float16", -12, 8]),
    ("parts", ["int32", 11]),
    ("ignore", ["uint8", 20, 31]),
    ("extra", ["uint8", 1]),
):
    WRONG[f"{name} {spec}"] = head(partial(_set_array, name=name, spec=spec))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_calibration_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.calibration"
    path.write_bytes(WRONG[name])
    with pytest.raises(CalibrationError, match=r"clipsam calibrate`\."):
        Calibration.read(path)


def test_scores_that_are_none_are_left_out() -> None:
    for scores, good in (([0.25, "x", None, True, 9e99, 1], (0.25, 1.0)), (5, ()), ({}, ())):
        change = partial(_set, name="notes", value={"good_scores": scores})
        data = head(change).replace(b"9e+99", b"9e+999")  # which JSON reads as infinity
        assert Calibration.from_bytes(data).good_scores == good
    assert example().good_scores == ()


def test_another_schema_is_named() -> None:
    with pytest.raises(CalibrationError, match="has schema 2, this version of clipsam reads"):
        Calibration.from_bytes(head(lambda v: v.update(calibration=2)))


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CalibrationError, match="cannot be read"):
            Calibration.read(path)


def test_its_options_hold_and_another_limit_may_be_given() -> None:
    made = example()
    options = calibrated(InspectOptions(), made)
    assert (options.limit, options.min_area, options.roi) == (0.625, 25.0, (1, 2, 20, 15))
    np.testing.assert_array_equal(options.ignore, made.ignore)
    assert calibrated(InspectOptions(limit=0.7), made).limit == 0.7
    assert calibrated(InspectOptions(min_area=25), made).min_area == 25
    assert calibrated(InspectOptions(limit=0.7), None).limit == 0.7
    for other in (
        InspectOptions(min_area=24),
        InspectOptions(roi=(1, 2, 20, 16)),
        InspectOptions(mm_per_pixel=0.1),
        InspectOptions(ignore=np.ones((20, 30), np.bool_)),
    ):
        with pytest.raises(CalibrationError, match="made with another --"):
            calibrated(other, made)
