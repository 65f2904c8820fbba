"""Result and Region: frozen, and through JSON without loss."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from clipsam.runtime import Region, Result

SCORE_MAP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
MASK = SCORE_MAP > 0.5


def example(**changes: Any) -> Result:
    region = Region((1, 2, 3, 4), 9, (2.5, 3.25), ((1, 2), (3, 2), (3, 5)), 0.8125)
    result = Result(
        verdict="anomalous",
        score=0.8125,
        limit=0.25,
        regions=(region, replace(region, area=4)),
        category="métal nut",
        height=3,
        width=4,
        prompts=2,
        dropped=1,
        refined=True,
        norm="fixed",
        bundle="0123456789ab",
        timings={"rough": 12.125, "total": 40.5},
        score_map=SCORE_MAP,
        mask=MASK,
    )
    return replace(result, **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"regions": (), "verdict": "good"}, {"refined": False}], ids=str
)
def test_a_result_survives_json(changes: dict[str, Any]) -> None:
    result = example(**changes)
    back = Result.from_json(result.to_json(), SCORE_MAP, MASK)
    assert back == result
    assert back.score_map is SCORE_MAP
    assert back.mask is MASK
    assert back.anomalous == (result.verdict == "anomalous")
    assert isinstance(back.regions, tuple)
    if back.regions:
        assert isinstance(back.regions[0].box, tuple)
        assert isinstance(back.regions[0].contour[0], tuple)


def test_json_is_one_line_of_plain_values() -> None:
    text = example().to_json()
    assert "\n" not in text
    values = json.loads(text)
    assert "score_map" not in values
    assert "mask" not in values
    assert values["regions"][0]["box"] == [1, 2, 3, 4]
    assert values["timings"] == {"rough": 12.125, "total": 40.5}
    assert values["category"] == "métal nut"


def test_timings_come_back_exactly() -> None:
    result = example(timings={"total": 1.23456})
    assert Result.from_json(result.to_json(), SCORE_MAP, MASK) == result


def test_a_result_cannot_be_changed() -> None:
    result = example()
    with pytest.raises(FrozenInstanceError):
        result.verdict = "good"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        result.regions[0].area = 1  # type: ignore[misc]


def test_arrays_are_neither_printed_nor_compared() -> None:
    result = example()
    assert "score_map" not in repr(result)
    assert "mask" not in repr(result)
    assert result == example(score_map=np.zeros((3, 4), np.float32), mask=~MASK)
    assert result != example(score=0.5)


def changed(**changes: Any) -> str:
    values = json.loads(example().to_json())
    for name, value in changes.items():
        if value is None:
            del values[name]
        else:
            values[name] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        "{}",
        changed(verdict=None),
        changed(regions=None),
        changed(colour="red"),
        changed(regions=[{"box": [1, 2, 3, 4]}]),
        changed(regions=[3]),
        changed(regions=3),
        example().to_json()[:-20],
    ],
)
def test_damaged_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Result.from_json(text, SCORE_MAP, MASK)
