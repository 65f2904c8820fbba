"""From the rough map to points and boxes: what is found, in which order, and how stably."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from clipsam.runtime.ops.components import find_components, pixel_area
from clipsam.runtime.stages.prompts import PromptOptions, Prompts, find_prompts

OPTIONS = PromptOptions(min_area=0)
Map = NDArray[np.float32]


def blank(height: int = 60, width: int = 80) -> Map:
    return np.zeros((height, width), np.float32)


def squares(*boxes: tuple[int, int, int, int, float]) -> Map:
    """A map with rectangles (x, y, width, height, value)."""
    rough = blank()
    for x, y, w, h, value in boxes:
        rough[y : y + h, x : x + w] = value
    return rough


def test_an_empty_map_has_no_prompts() -> None:
    prompts = find_prompts(blank(), OPTIONS)
    assert len(prompts) == 0
    assert prompts.dropped == 0
    assert prompts.boxes.shape == (0, 4)
    assert prompts.coordinates().shape == (0, OPTIONS.num_points + 2, 2)
    assert prompts.labels().shape == (0, OPTIONS.num_points + 2)


def test_the_threshold_is_exclusive() -> None:
    at = squares((10, 10, 5, 5, OPTIONS.threshold))
    assert len(find_prompts(at, OPTIONS)) == 0
    above = np.nextafter(at, np.float32(1))
    assert len(find_prompts(np.where(at > 0, above, 0), OPTIONS)) == 1


def test_boxes_are_inclusive_pixels() -> None:
    prompts = find_prompts(squares((10, 20, 5, 3, 0.9), (0, 0, 1, 1, 0.9)), OPTIONS)
    np.testing.assert_array_equal(prompts.boxes, [[10, 20, 14, 22], [0, 0, 0, 0]])
    assert prompts.boxes.dtype == np.float32


def test_a_component_that_fills_the_map() -> None:
    prompts = find_prompts(np.ones((60, 80), np.float32), OPTIONS)
    np.testing.assert_array_equal(prompts.boxes, [[0, 0, 79, 59]])


def test_diagonal_neighbours_are_one_component() -> None:
    rough = blank()
    rough[[10, 11, 12], [10, 11, 10]] = 1
    prompts = find_prompts(rough, OPTIONS)
    np.testing.assert_array_equal(prompts.boxes, [[10, 10, 11, 12]])


def test_the_largest_evidence_comes_first() -> None:
    """Evidence is the sum of the map, not the area and not the highest value."""
    large = (30, 30, 10, 10, 0.5)  # 50
    bright = (5, 5, 6, 10, 0.9)  # 54
    peak = (60, 5, 3, 3, 1.0)  # 9
    prompts = find_prompts(squares(large, bright, peak), OPTIONS)
    np.testing.assert_array_equal(prompts.boxes[:, :2], [[5, 5], [30, 30], [60, 5]])


def test_ties_are_broken_by_position() -> None:
    """Equal evidence: from the top, then from the left, whatever the labels."""
    places = [(40, 5), (10, 5), (10, 30), (60, 50)]
    prompts = find_prompts(squares(*((x, y, 4, 4, 0.75) for x, y in places)), OPTIONS)
    np.testing.assert_array_equal(prompts.boxes[:, :2], [[10, 5], [40, 5], [10, 30], [60, 50]])


@pytest.mark.parametrize("flip", [np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]])
def test_the_order_of_equal_components_is_by_position_alone(flip: tuple[slice, ...]) -> None:
    """Not by which one the search met first: mirrored, the map's boxes are in mirrored order."""
    rough = squares(*((x, y, 3, 3, 0.75) for x in (4, 30, 61) for y in (9, 40)))
    rough = np.ascontiguousarray(rough[flip])
    boxes = find_prompts(rough, OPTIONS).boxes
    assert len(boxes) == 6
    assert boxes[:, 1::-1].tolist() == sorted(boxes[:, 1::-1].tolist())  # by (y, x)


def test_min_area_is_a_fraction_of_the_image() -> None:
    rough = squares((5, 5, 4, 5, 0.9), (30, 30, 3, 7, 0.9))  # 20 and 21 pixels of 4800
    options = replace(OPTIONS, min_area=21 / 4800)
    prompts = find_prompts(rough, options)
    np.testing.assert_array_equal(prompts.boxes, [[30, 30, 32, 36]])
    assert prompts.dropped == 0  # too small is not dropped: it does not count
    assert pixel_area(1e-4, (60, 80)) == 1
    assert pixel_area(1e-4, (3000, 4000)) == 1200


def test_max_boxes_and_dropped() -> None:
    rough = squares(*((4 * i, 5, 2, 2, 0.5 + i / 100) for i in range(19)))
    prompts = find_prompts(rough, OPTIONS)
    assert len(prompts) == 16
    assert prompts.dropped == 3
    assert prompts.boxes[0, 0] == 4 * 18  # the weakest three are dropped
    assert prompts.boxes[:, 0].min() == 4 * 3
    few = find_prompts(rough, replace(OPTIONS, max_boxes=2))
    assert (len(few), few.dropped) == (2, 17)


def test_coordinates_are_points_then_the_boxs_corners() -> None:
    rough = squares((10, 20, 5, 3, 0.9), (40, 40, 8, 8, 0.9))
    prompts = find_prompts(rough, replace(OPTIONS, num_points=3))
    assert prompts.coordinates().dtype == prompts.labels().dtype == np.float32
    np.testing.assert_array_equal(prompts.labels(), [[1, 1, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(prompts.coordinates()[:, :3], prompts.points)
    np.testing.assert_array_equal(prompts.coordinates()[1, 3:], [[10, 20], [14, 22]])


@pytest.mark.parametrize("seed", range(4))
def test_shared_points_lie_in_any_kept_component(seed: int) -> None:
    rough = random_components(seed)
    options = replace(OPTIONS, max_boxes=3, num_points=8)
    prompts = find_prompts(rough, options)
    assert prompts.dropped > 0
    assert (prompts.points == prompts.points[0]).all()
    kept = find_components(rough > options.threshold, rough, 1)[:3]
    pixels = {int(pixel) for c in kept for pixel in c.pixels}
    assert {int(y) * rough.shape[1] + int(x) for x, y in prompts.points[0]} <= pixels
    assert len(np.unique(prompts.points[0], axis=0)) == 8  # without replacement


@pytest.mark.parametrize("seed", range(4))
def test_points_per_region_lie_in_their_component(seed: int) -> None:
    rough = random_components(seed)
    options = replace(OPTIONS, points="per_region", num_points=8)
    prompts = find_prompts(rough, options)
    components = find_components(rough > options.threshold, rough, 1)
    assert len(prompts) > 3
    for points, box, component in zip(prompts.points, prompts.boxes, components, strict=False):
        assert tuple(box[:2]) == (component.x_min, component.y_min)
        for x, y in points.astype(int):
            assert component.mask[y - component.y_min, x - component.x_min]


def test_fewer_pixels_than_points_repeats_them() -> None:
    rough = squares((10, 20, 2, 1, 0.9))
    prompts = find_prompts(rough, replace(OPTIONS, num_points=5))
    assert prompts.points.shape == (1, 5, 2)
    assert {tuple(p) for p in prompts.points[0]} == {(10.0, 20.0), (11.0, 20.0)}


def test_the_seed_changes_the_points_and_only_them() -> None:
    rough = squares((10, 10, 30, 30, 0.9))
    draws = [find_prompts(rough, replace(OPTIONS, seed=seed)) for seed in (0, 1, 2, -1, 2**70)]
    for a, b in pairwise(draws):
        assert (a.points != b.points).any()
        np.testing.assert_array_equal(a.boxes, b.boxes)


def test_the_same_map_gives_the_same_prompts() -> None:
    rough = random_components(5)
    expected = find_prompts(rough, OPTIONS)
    for _ in range(5):
        _assert_same(find_prompts(rough.copy(), OPTIONS), expected)


@pytest.mark.parametrize("points", ["shared", "per_region"])
def test_a_few_border_pixels_rarely_change_the_points(points: str) -> None:
    """Another backend rounds differently: pixels at a component's edge join or leave it.

    With 2 of about 900 pixels changed, each of 5 points is hit with probability 2/900 or so, so
    about 1 % of the draws may change; a draw by position in a list would change nearly always.
    """
    options = replace(OPTIONS, points=points)
    draw = np.random.default_rng(11)
    changed = 0
    for seed in range(300):
        rough = squares((20, 15, 30, 30, 0.9))
        before = find_prompts(rough, replace(options, seed=seed)).points
        for _ in range(2):
            offset = int(draw.integers(30))
            x, y = [(20, 15 + offset), (49, 15 + offset), (20 + offset, 15)][draw.integers(3)]
            rough[y, x] = 0
        x = int(draw.integers(20, 50))
        rough[45, x] = 0.9  # and one joins
        after = find_prompts(rough, replace(options, seed=seed)).points
        changed += bool((before != after).any())
    assert changed <= 15  # 5 %


def test_points_are_drawn_uniformly() -> None:
    """Chi-square over the 100 pixels of a component, 400 seeds of 5 points."""
    counts = np.zeros((10, 10))
    rough = squares((30, 20, 10, 10, 0.9))
    for seed in range(400):
        for x, y in find_prompts(rough, replace(OPTIONS, seed=seed)).points[0].astype(int):
            counts[y - 20, x - 30] += 1
    expected = 400 * 5 / 100
    assert counts.sum() == 2000
    # Drawn without replacement, so a little less spread than chi-square with 99 degrees of
    # freedom, whose 0.1 % and 99.9 % quantiles are 60 and 149.
    assert 55 < ((counts - expected) ** 2 / expected).sum() < 149


def test_neighbouring_seeds_draw_unrelated_points() -> None:
    """Not the same points one pixel further on: hardly any of 60 pairs of draws touch."""
    rough = np.ones((64, 64), np.float32)
    draws = [find_prompts(rough, replace(OPTIONS, seed=s)).points[0] for s in range(61)]
    near = [np.abs(a[:, None] - b[None]).sum(axis=-1).min() <= 1 for a, b in pairwise(draws)]
    assert sum(near) <= 10  # 25 pairs of points, each near with probability 5/4096: 2 expected


@pytest.mark.parametrize("seed", range(5))
def test_points_do_not_cluster(seed: int) -> None:
    """Many points over a large component: each quarter gets its share."""
    rough = np.ones((64, 64), np.float32)
    points = find_prompts(rough, replace(OPTIONS, seed=seed, num_points=400)).points[0]
    quarters = np.histogram2d(points[:, 0], points[:, 1], bins=2, range=[[0, 64], [0, 64]])[0]
    assert quarters.min() > 70
    assert quarters.max() < 130


@pytest.mark.parametrize(
    "options",
    [
        {"points": "random"},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"threshold": float("nan")},
        {"num_points": 0},
        {"max_boxes": 0},
        {"min_area": -0.1},
        {"min_area": 1.0},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, float | str]) -> None:
    with pytest.raises(ValueError):
        PromptOptions(**options)  # type: ignore[arg-type]


def random_components(seed: int) -> Map:
    """A dozen irregular blobs."""
    draw = np.random.default_rng(seed)
    field = cv2.GaussianBlur(draw.random((60, 80), np.float32), (0, 0), 2.5)
    field = (field - field.min()) / np.ptp(field)
    rough: Map = np.clip(field - 0.12, 0, 1).astype(np.float32)
    return rough


def _assert_same(a: Prompts, b: Prompts) -> None:
    np.testing.assert_array_equal(a.boxes, b.boxes)
    np.testing.assert_array_equal(a.points, b.points)
    assert a.dropped == b.dropped


def test_a_component_below_the_limit_is_none() -> None:
    rough = np.zeros((20, 30), np.float32)
    rough[2:6, 2:6] = 0.6
    rough[10:15, 10:20] = 0.6
    rough[12, 12] = 0.9
    options = replace(OPTIONS, threshold=0.5, limit=0.88)
    (component,) = find_prompts(rough, options).components
    assert (component.x_min, component.y_min, component.area) == (10, 10, 50)  # all of it is kept
    assert len(find_prompts(rough, replace(options, limit=0.0)).components) == 2
