"""Components from runs of pixels, prompts and the decision: the same as OpenCV's, one by one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.plain_host import PlainComponent, plain_components, plain_decide, plain_prompts

from clipsam.runtime.ops.components import Component, find_components
from clipsam.runtime.ops.runs import Runs
from clipsam.runtime.stages.decision import DecisionOptions, decide
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


def spiral(size: int) -> Mask:
    """One pixel wide and one apart: a single component of the most turns."""
    mask = np.zeros((size, size), np.bool_)
    y = x = 0
    dy, dx, mask[0, 0] = 0, 1, True
    for length in [size - 1, *np.repeat(np.arange(size - 1, 1, -2), 2).tolist()]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


def rings(size: int) -> Mask:
    """Squares within squares: every box holds all later ones."""
    y, x = np.mgrid[0:size, 0:size]
    return np.asarray(np.minimum(np.minimum(y, x), np.minimum(size - 1 - y, size - 1 - x)) % 2 == 0)


def stripes(height: int, width: int) -> Mask:
    """Diagonals two apart: boxes that overlap nearly wholly."""
    y, x = np.mgrid[0:height, 0:width]
    return np.asarray((y - x) % 3 == 0)


def comb(height: int, width: int) -> Mask:
    """Teeth that meet only in the last row, so that many runs turn out to be one component."""
    mask = np.zeros((height, width), np.bool_)
    mask[:, ::2] = True
    mask[-1] = True
    return mask


def board(height: int, width: int) -> Mask:
    """A chessboard: one component by corners alone, and as many runs as there can be."""
    y, x = np.mgrid[0:height, 0:width]
    return np.asarray((y + x) % 2 == 0)


def specks(height: int, width: int, seed: int, share: float) -> Mask:
    return np.random.default_rng(seed).random((height, width)) < share


def blobs(height: int, width: int, seed: int) -> Mask:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2) > 0.52)


MASKS = {
    "empty": np.zeros((20, 30), np.bool_),
    "full": np.ones((20, 30), np.bool_),
    "one pixel": np.ones((1, 1), np.bool_),
    "a row": specks(1, 50, 0, 0.5),
    "a column": specks(50, 1, 0, 0.5),
    "spiral": spiral(41),
    "mirrored spiral": np.ascontiguousarray(spiral(40)[:, ::-1]),
    "rings": rings(37),
    "stripes": stripes(60, 45),
    "comb": comb(30, 61),
    "upside down comb": np.ascontiguousarray(comb(30, 61)[::-1]),
    "board": board(24, 31),
    "few specks": specks(70, 90, 1, 0.05),
    "specks": specks(70, 90, 2, 0.3),
    "many specks": specks(90, 70, 3, 0.6),
    "blobs": blobs(120, 100, 4),
    "more blobs": blobs(300, 700, 5),  # in several blocks of rows
    "row ends": np.eye(40, dtype=np.bool_) | np.eye(40, dtype=np.bool_)[::-1],
}


def weights_of(mask: Mask, seed: int = 0) -> Map:
    return np.random.default_rng(seed).random(mask.shape, np.float32)


def assert_same(found: list[Component], plain: list[PlainComponent]) -> None:
    """Equal to the last bit: centroids and sums too."""
    assert len(found) == len(plain)
    for one, other in zip(found, plain, strict=True):
        assert (one.x_min, one.y_min, one.x_max, one.y_max) == other.box
        assert one.area == other.area == len(one.pixels)
        assert one.centroid == other.centroid
        assert one.evidence == other.evidence
        np.testing.assert_array_equal(one.mask, other.mask)


@pytest.mark.parametrize("min_area", [1, 2, 25])
@pytest.mark.parametrize("name", MASKS)
def test_components_are_opencvs(name: str, min_area: int) -> None:
    mask = MASKS[name]
    weights = weights_of(mask)
    found = find_components(mask, weights, min_area)
    assert_same(found, plain_components(mask, weights, min_area))
    for component in found:
        assert (np.diff(component.pixels) > 0).all()
        assert mask.ravel()[component.pixels].all()


def test_components_of_every_3_by_4_map_are_the_plain_ones() -> None:
    """All 4096 maps of 3 x 4 pixels, with weights that leave no tie."""
    weights = (2.0 ** np.arange(12)).astype(np.float32).reshape(3, 4)
    for number in range(1 << 12):
        mask = ((number >> np.arange(12)) & 1).astype(np.bool_).reshape(3, 4)
        assert_same(find_components(mask, weights, 1), plain_components(mask, weights, 1))


def test_components_are_found_in_views() -> None:
    mask, weights = blobs(80, 90, 7), weights_of(blobs(80, 90, 7))
    for view in (np.s_[::-1, ::2], np.s_[5:50, 3:77], np.s_[:, ::-1]):
        expected = plain_components(
            np.ascontiguousarray(mask[view]), np.ascontiguousarray(weights[view]), 1
        )
        assert_same(find_components(mask[view], weights[view], 1), expected)


def test_runs_are_those_of_a_loop() -> None:
    for name, mask in MASKS.items():
        expected = []
        for y, row in enumerate(mask):
            for x, value in enumerate(row):
                if value and (x == 0 or not row[x - 1]):
                    expected.append([y * mask.shape[1] + x, 0])
                if value:
                    expected[-1][1] += 1
        runs = Runs.of(mask)
        assert [list(pair) for pair in zip(runs.starts, runs.lengths, strict=True)] == expected, (
            name
        )
        np.testing.assert_array_equal(runs.pixels(), np.flatnonzero(mask), err_msg=name)


def test_ties_go_by_the_first_pixel_even_with_one_box() -> None:
    """Two hooks in one box with equal sums: nothing but their pixels tells them apart."""
    mask = np.zeros((5, 5), np.bool_)
    mask[0, :4] = mask[:4, 0] = True
    mask[4, 1:] = mask[1:, 4] = True
    mask[0, 4] = mask[4, 0] = False
    mask[0, 3] = mask[3, 0] = mask[4, 1] = mask[1, 4] = False
    boxes = [(c.x_min, c.y_min) for c in find_components(mask, np.ones((5, 5), np.float32), 1)]
    assert boxes == [(0, 0), (2, 2)]


@pytest.mark.parametrize("points", ["shared", "per_region"])
@pytest.mark.parametrize("name", MASKS)
def test_prompts_are_the_plain_ones(name: str, points: str) -> None:
    mask = MASKS[name]
    rough = np.where(mask, 0.5 + weights_of(mask) / 2, 0.3).astype(np.float32)
    for seed, count, limit, area in ((0, 5, 0.0, 0), (7, 1, 0.9, 0), (-3, 40, 0.0, 0.003)):
        options = PromptOptions(
            points=points, seed=seed, num_points=count, min_area=area, limit=limit
        )
        found = find_prompts(rough, options)
        score, boxes, drawn, components = plain_prompts(rough, options)
        assert found.score == score
        assert (len(found) > 0) == (score > found.limit)
        np.testing.assert_array_equal(found.boxes, boxes)
        np.testing.assert_array_equal(found.points, drawn)
        assert found.points.dtype == drawn.dtype == np.float32
        assert_same(list(found.components), components)


def test_points_of_a_component_larger_than_a_chunk() -> None:
    rough = np.full((300, 400), 0.9, np.float32)
    rough[100:140] = 0.1
    for seed in range(10):
        options = PromptOptions(seed=seed, num_points=9)
        _, _, drawn, _ = plain_prompts(rough, options)
        np.testing.assert_array_equal(find_prompts(rough, options).points, drawn)


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("name", MASKS)
def test_the_decision_is_the_plain_one(name: str, refined: bool) -> None:
    """Regions to the last bit: boxes, areas, centroids, outlines, scores, and their order.

    SAM's part of the map keeps some components, misses others, and adds specks and bridges.
    """
    mask = MASKS[name]
    draw = np.random.default_rng(len(name))
    rough = np.where(mask, 0.5 + weights_of(mask) / 2, 0.3).astype(np.float32)
    options = PromptOptions(min_area=0)
    prompts, plain = find_prompts(rough, options), plain_prompts(rough, options)[3]
    for smallest in (0.0, min(3 / mask.size, 1)):
        for share in (0.0, 0.5, 1.0):
            drawn = mask & (cv2.blur(draw.random(mask.shape), (9, 9)) < share)
            drawn |= draw.random(mask.shape) < 0.02
            final = (rough / 4 + np.where(drawn, 0.4, 0)).astype(np.float32)
            settings = DecisionOptions(min_area=smallest * 0.99)
            found = decide(final, prompts, settings, refined=refined)
            expected = plain_decide(final, plain, settings, refined=refined)
            np.testing.assert_array_equal(found.mask, expected[0])
            assert found.mask.dtype == np.bool_
            assert found.regions == expected[1]


def test_outlines_of_regions_within_regions() -> None:
    """An outline is the region's own, not that of the hole it lies in."""
    final = np.where(rings(21), 0.9, 0).astype(np.float32)
    prompts = find_prompts(final, PromptOptions(min_area=0))
    found = decide(final, prompts, DecisionOptions(min_area=0), refined=True)
    assert len(found.regions) == 6
    assert found.mask.sum() == sum(region.area for region in found.regions)
    for number, region in enumerate(sorted(found.regions, key=lambda r: r.box)):
        low, high = 2 * number, 20 - 2 * number
        assert set(region.contour) == {(low, low), (high, low), (high, high), (low, high)}
