"""Bands of a resize: the products that they stand for, and how wide they may become."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.pillow_resize import resize_bilinear
from clipsam.runtime.ops.resize_bands import Bands, clip_bands, groups, sam_bands, widest


def multiply(bands: Bands, samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Samples [old,...] -> outputs [size,...], in float64."""
    found = np.einsum("gnk,gk...->gn...", bands.weights.astype(np.float64), samples[bands.index])
    return np.asarray(found.reshape(-1, *samples.shape[1:]), np.float64)


def level(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("size", [1, 7, 64, 97, 224, 336, 518, 1024])
def test_groups_make_up_the_side(size: int) -> None:
    count, each = groups(size)
    assert count * each == size
    assert size in (1, 7, 97) or 20 <= each <= 45


@pytest.mark.parametrize("old", [1, 2, 63, 64, 65, 100, 640, 1000])
def test_every_output_is_a_mean_of_its_samples(old: int) -> None:
    for bands in (clip_bands(old, 64), sam_bands(old, 40, 64)):
        assert bands.index.min() >= 0
        assert bands.index.max() < old
        sums = bands.weights.astype(np.float64).sum(axis=2).ravel()
        np.testing.assert_allclose(sums[:40], 1, atol=2e-3)  # cubic weights are short
    assert not sums[40:].any()  # beyond the picture SAM's frame is black


@pytest.mark.parametrize(("old", "new"), [(640, 64), (100, 64), (96, 64), (33, 64), (64, 64)])
def test_along_one_axis_sams_values_are_pillows(old: int, new: int) -> None:
    image = noise(old, 5, 3)
    found = level(multiply(sam_bands(old, new, new), image.astype(np.float64)))
    np.testing.assert_array_equal(found, resize_bilinear(image, new, 5))


@pytest.mark.parametrize("old", [640, 130, 100, 65, 64, 40, 9, 1])
def test_along_one_axis_clips_values_are_opencvs(old: int) -> None:
    image = noise(old, 64, 3)
    found = level(multiply(clip_bands(old, 64), image.astype(np.float64)))
    how = cv2.INTER_AREA if old >= 64 else cv2.INTER_CUBIC
    off = cv2.absdiff(found, np.asarray(cv2.resize(image, (64, 64), interpolation=how)))
    assert off.max() <= 1
    # Sums half-way between two levels, which OpenCV takes to the even one: of ten samples each
    # tenth is, and every other of those goes down.
    assert np.count_nonzero(off) <= 0.06 * off.size


def test_no_band_is_wider_than_an_engine_takes() -> None:
    longest = 1000
    for size in (64, 97, 128):
        for height in (*range(1, 60), 333, 500, 777, 999, longest):
            rows, columns = Geometry(height, longest, size).sam_shape
            if rows:
                assert sam_bands(height, rows, size).index.shape[1] <= widest(longest, size)
            assert sam_bands(longest, columns, size).index.shape[1] <= widest(longest, size)
            assert clip_bands(height, size).index.shape[1] <= widest(longest, size)
        assert clip_bands(longest, size).index.shape[1] <= widest(longest, size)
