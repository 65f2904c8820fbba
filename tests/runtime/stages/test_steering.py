"""What is not asked for leaves the map, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

from clipsam.runtime.ops.components import Component
from clipsam.runtime.stages.naming import UNKNOWN
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts
from clipsam.runtime.stages.steering import Asked, steer

OPTIONS = PromptOptions(threshold=0.45, limit=0.6, min_area=1e-3)
NOTHING: frozenset[str] = frozenset()


def bump(x: int, y: int, height: float) -> np.ndarray:
    """A round hill on a map 96x128, its slope 20 pixels wide."""
    ys, xs = np.mgrid[:96, :128]
    away = np.hypot(xs - x, ys - y)
    return np.asarray(height * np.exp(-((away / 10) ** 2)), np.float32)


def by_side(component: Component) -> dict[str, float]:
    """What lies on the left is text, what lies on the right a crack."""
    text = component.centroid[0] < 64
    return {"text": 0.9, "crack": 0.1} if text else {"crack": 0.7, "text": 0.1, UNKNOWN: 0.2}


@pytest.mark.parametrize("heights", [(0.9, 0.7), (0.7, 0.9), (0.55, 0.3), (0.9, 0.05)])
@pytest.mark.parametrize("asked", [Asked(None, frozenset({"text"})),
                                   Asked(frozenset({"crack"}), NOTHING)])  # fmt: skip
def test_what_is_not_asked_for_goes_with_its_rim_and_the_rest_stays_to_the_bit(
    heights: tuple[float, float], asked: Asked
) -> None:
    left, right = bump(35, 48, heights[0]), bump(95, 48, heights[1])
    rough = np.maximum(left, right)
    found = steer(rough, OPTIONS, asked, by_side)
    np.testing.assert_array_equal(rough[:, 75:], np.maximum(left, right)[:, 75:])
    assert rough[:, :60].max() <= OPTIONS.threshold * 0.25
    assert [next(iter(n.kinds)) for n in found.aside] == ["text"]
    assert found.aside[0].level == pytest.approx(heights[0], abs=0.05)
    assert found.mask(rough.shape)[48, 35]
    assert not found.mask(rough.shape)[48, 95]


def test_the_score_is_that_of_what_is_asked_for_whatever_the_limit() -> None:
    scores = []
    for limit in (0.2, 0.6, 0.95):
        rough = np.maximum(bump(35, 48, 0.9), bump(95, 48, 0.5))
        options = PromptOptions(threshold=0.45, limit=limit, min_area=1e-3)
        steer(rough, options, Asked(frozenset({"crack"}), NOTHING), by_side)
        scores.append(find_prompts(rough, options).score)
    alone = find_prompts(bump(95, 48, 0.5), OPTIONS).score
    assert scores == [alone] * 3


def test_what_is_kept_keeps_its_name() -> None:
    rough = np.maximum(bump(35, 48, 0.9), bump(95, 48, 0.8))
    found = steer(rough, OPTIONS, Asked(None, frozenset({"text"})), by_side)
    (component,) = find_prompts(rough, OPTIONS).components
    assert found.of(component) == by_side(component)
    (text,) = find_prompts(bump(35, 48, 0.9), OPTIONS).components
    assert found.of(text) is None


def test_nothing_is_left_where_nothing_is_asked_for() -> None:
    rough = np.maximum(bump(35, 48, 0.9), bump(95, 48, 0.8))
    found = steer(rough, OPTIONS, Asked(frozenset({"banana"}), NOTHING), by_side)
    assert find_prompts(rough, OPTIONS).score < 0.2
    assert len(found.aside) == 2
    assert found.kept == ()


KINDS = {"scratch": 0.6, "crack": 0.2, "hole": 0.08, UNKNOWN: 0.07, "dent": 0.05}


@pytest.mark.parametrize(
    ("look_for", "ignore", "kept"),
    [
        (None, {"crack", "hole"}, True),  # not more than half
        (None, {"scratch"}, False),
        ({"scratch"}, set(), True),
        ({"crack"}, set(), True),  # more than a fifth of the most probable
        ({"hole"}, set(), False),
        ({"hole", "dent"}, set(), True),  # together they have so much
        ({UNKNOWN}, set(), False),
        ({"banana"}, set(), False),
        ({"scratch", "crack"}, {"scratch", "hole"}, False),
    ],
)
def test_which_regions_count(look_for: set[str] | None, ignore: set[str], kept: bool) -> None:
    asked = Asked(None if look_for is None else frozenset(look_for), frozenset(ignore))
    assert asked.keeps(KINDS) is kept
