"""The highest level with a component of some size: as halving over all levels finds it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.plain_host import plain_level

from clipsam.runtime.ops.level import below, component_level

Map = NDArray[np.float32]


def random_map(seed: int) -> Map:
    """Noise, blobs, few levels, thin or large: the large ones are searched from a smaller map."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2) if seed % 6 else rng.integers(260, 420, 2)
    values: NDArray[Any] = rng.random((height, width), np.float32)
    if seed % 3 == 0:
        values = cv2.GaussianBlur(values, (0, 0), float(rng.uniform(1, 9)))
    if seed % 4 == 0:
        values = np.round(values * 8) / 8
    return np.asarray(values.reshape(height, width), np.float32)


@pytest.mark.parametrize("seed", range(60))
def test_the_level_is_the_one_that_halving_finds(seed: int) -> None:
    values = random_map(seed)
    for area in {1, 2, 9, values.size // 100, values.size // 3, values.size}:
        if 1 <= area <= values.size:
            assert component_level(values, area) == plain_level(values, area)


@pytest.mark.parametrize("peaks", [1, 3, 40])
def test_the_level_of_a_large_map_is_the_one_that_halving_finds(peaks: int) -> None:
    """Where smaller maps say at which level to look: hills of many sizes, rough or smooth."""
    rng = np.random.default_rng(peaks)
    values = np.zeros((900, 1300), np.float32)
    for _ in range(peaks):
        x, y, size = int(rng.integers(1300)), int(rng.integers(900)), int(rng.integers(3, 90))
        cv2.circle(values, (x, y), size, float(rng.uniform(0.2, 1)), -1)
    values = np.asarray(cv2.GaussianBlur(values, (0, 0), 9), np.float32)
    for noise in (0, 0.003):
        rough = values + noise * rng.random(values.shape, np.float32)
        for area in (2, 40, 1170, 30_000):
            assert component_level(rough, area) == plain_level(rough, area)


def test_rings_around_rings_are_apart() -> None:
    """Windows around them overlap, and most of a window belongs to others."""
    values = np.zeros((333, 401), np.float32)
    for number, radius in enumerate(range(8, 160, 10)):
        cv2.circle(values, (190, 170), radius, 0.3 + 0.01 * (number * 7 % 16), 2)
    cv2.circle(values, (380, 12), 8, 0.9, -1)
    for area in (2, 60, 200, 900, 1900):
        assert component_level(values, area) == plain_level(values, area)


def test_the_whole_map_is_a_component_at_its_lowest_value() -> None:
    values = random_map(6)
    assert component_level(values, values.size) == values.min()
    assert component_level(np.zeros((300, 400), np.float32), 500) == 0


def test_two_halves_of_a_defect_are_none() -> None:
    """Two components of half the size each do not make one."""
    values = np.zeros((20, 20), np.float32)
    values[2:4, 2:6] = values[10:12, 2:6] = 0.9
    values[5:9, 2:6] = 0.5
    assert component_level(values, 8) == np.float32(0.9)
    assert component_level(values, 9) == np.float32(0.5)


@pytest.mark.parametrize("limit", [0.47, 0.6, 0.1, 0.25, 1e-9, 0.0, 7.3, 1 / 3])
def test_no_float32_value_lies_between_a_limit_and_what_is_compared(limit: float) -> None:
    rounded = below(limit)
    assert rounded.dtype == np.float32
    assert float(rounded) <= limit < float(np.nextafter(rounded, np.float32(np.inf)))
