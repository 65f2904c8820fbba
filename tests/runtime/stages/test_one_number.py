"""One number decides: the score above the limit, on any map and with any options."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from clipsam.runtime.ops.components import find_components, pixel_area
from clipsam.runtime.stages.decision import DecisionOptions, decide
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts

Map = NDArray[np.float32]


def random_map(rng: np.random.Generator) -> Map:
    height, width = rng.integers(1, 60, 2)
    values = rng.random((height, width), np.float32)
    if rng.random() < 0.6:
        values = cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.5, 8)))
        values = (values - values.min()) / max(float(values.max() - values.min()), 1e-6)
    if rng.random() < 0.3:
        values = np.round(values * 5) / 5
    if rng.random() < 0.1:
        values = np.zeros((height, width))
    return np.asarray(values.reshape(height, width), np.float32)


def random_options(rng: np.random.Generator, rough: Map) -> PromptOptions:
    """Limits above and below the threshold, and such that equal a value of the map."""
    limit = float(rng.choice([0.0, rng.random(), float(rng.choice(rough.ravel()))]))
    return PromptOptions(
        points=str(rng.choice(["shared", "per_region"])),
        threshold=float(rng.uniform(0.05, 0.95)),
        num_points=int(rng.integers(1, 6)),
        max_boxes=int(rng.integers(1, 5)),
        min_area=float(rng.choice([0, 1e-4, 0.01, 0.1, 0.9])),
        limit=limit,
    )


@pytest.mark.parametrize("seed", range(400))
def test_anomalous_is_a_score_above_the_limit_and_has_a_region(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rough = random_map(rng)
    options = random_options(rng, rough)
    added = float(rng.choice([0.0, 0.0, rng.random(), 3.0]))
    prompts = find_prompts(rough, options, added)
    settings = DecisionOptions(float(rng.uniform(0.05, 0.95)), float(rng.choice([0, 0.01, 0.5])))
    # SAM as bad as it can be: nothing, everything, or masks anywhere.
    final = np.clip(rough / 4 + rng.choice([0, 1]) * rng.random(rough.shape, np.float32), 0, 1)
    verdicts = set()
    for refined in (False, len(prompts) > 0):
        found = decide(final.astype(np.float32), prompts, settings, refined=refined)
        verdicts.add((found.verdict, found.score, found.limit))
        assert (found.verdict == "anomalous") == (found.score > found.limit)
        assert (found.verdict == "anomalous") == (len(found.regions) > 0) == bool(found.mask.any())
        assert (found.verdict == "anomalous") == (len(prompts) > 0)
    assert len(verdicts) == 1


@pytest.mark.parametrize("seed", range(100))
def test_without_a_limit_of_its_own_the_verdict_is_the_papers_gate(seed: int) -> None:
    """Eq. 7: the binary map has a component of at least `min_area`."""
    rng = np.random.default_rng(seed)
    rough = random_map(rng)
    threshold = float(rng.choice([0.47, rng.uniform(0.05, 0.95)]))
    options = PromptOptions(threshold=threshold, min_area=float(rng.choice([1e-4, 0.02, 0.2])))
    smallest = pixel_area(options.min_area, rough.shape)
    paper = find_components(rough.astype(np.float64) > threshold, rough, smallest)
    prompts = find_prompts(rough, options)
    assert (prompts.score > prompts.limit) == (len(paper) > 0)
    assert prompts.limit == threshold
    assert [c.area for c in prompts.components] == [c.area for c in paper]


def test_what_is_added_raises_the_score_and_the_map_says_where() -> None:
    rough = np.full((40, 50), 0.1, np.float32)
    rough[10:15, 20:30] = 0.3
    options = PromptOptions(threshold=0.45, min_area=0.005, limit=0.6)
    assert len(find_prompts(rough, options)) == 0
    prompts = find_prompts(rough, options, 0.4)
    assert prompts.score == pytest.approx(0.7)
    (component,) = prompts.components
    assert (component.x_min, component.y_min, component.area) == (20, 10, 50)
    dark = find_prompts(np.zeros((40, 50), np.float32), options, 0.7)
    assert [c.area for c in dark.components] == [2000]  # the map knows no place
