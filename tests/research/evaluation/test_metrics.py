"""AUROC, AP and F1-max by hand, PRO against a slow, independent computation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from support.exact_pro import pro_score

from clipsam.research.evaluation.metrics import pixel_metrics


def slow_pro(
    maps: list[NDArray[np.float32]], masks: list[NDArray[np.bool_]], limit: float
) -> float:
    """The definition, threshold by threshold, with SciPy's components."""
    regions = []
    for score, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [score[labels == number] for number in range(1, count + 1)]
    sound = np.concatenate([s[~m] for s, m in zip(maps, masks, strict=True)])
    curve = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([s.ravel() for s in maps]))[::-1]:
        overlap = np.mean([(region >= threshold).mean() for region in regions])
        curve.append((float((sound >= threshold).mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            at_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + at_limit) / 2
    return area / limit


@pytest.mark.parametrize("levels", [2, 7, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_pro_is_the_definition(seed: int, levels: int) -> None:
    """Few levels: many ties, down to a saturated map."""
    rng = np.random.default_rng(seed)
    masks = [ndimage.binary_dilation(rng.random((30, 41)) > 0.98) for _ in range(3)]
    masks[1][:] = False  # a good image counts on the false positive side only
    maps = []
    for mask in masks:
        score = rng.random(mask.shape) + 0.7 * mask * rng.random()
        maps.append((np.floor(score * levels) / levels).astype(np.float32))
    for limit in (0.05, 0.3, 1.0):
        assert pro_score(maps, masks, limit) == pytest.approx(slow_pro(maps, masks, limit))


def test_pixel_metrics_are_those_worked_out_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8], np.float32)
    labels = np.array([False, False, True, True])
    found = pixel_metrics(scores, labels)
    assert found["auroc"] == pytest.approx(0.75)  # 3 of 4 pairs in order
    assert found["ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["f1_max"] == pytest.approx(0.8)


def test_pro_counts_small_regions_as_much_as_large_ones() -> None:
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    mask[15, 15] = True
    found_large = (mask & (np.arange(20) < 12)).astype(np.float32)
    assert pro_score([found_large], [mask], 1e-6) == pytest.approx(0.5, abs=1e-5)
    assert pro_score([mask.astype(np.float32)], [mask]) == pytest.approx(1.0)


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.eye(6, dtype=bool)
    score = np.zeros((6, 6), np.float32)
    score[0, 0] = 1
    assert pro_score([score], [mask], 1e-6) == pytest.approx(1 / 6, abs=1e-5)


def test_images_of_different_sizes_pool() -> None:
    small, large = np.zeros((4, 4), bool), np.zeros((9, 5), bool)
    large[2:4, 2] = True
    maps = [small.astype(np.float32), large.astype(np.float32)]
    assert pro_score(maps, [small, large]) == pytest.approx(1.0)


def test_metrics_need_a_defect_and_a_good_pixel() -> None:
    nothing, everything = np.zeros((5, 5), bool), np.ones((5, 5), bool)
    score = np.random.default_rng(0).random((5, 5), dtype=np.float32)
    for mask in (nothing, everything):
        with pytest.raises(ValueError, match="PRO needs"):
            pro_score([score], [mask])
        with pytest.raises(ValueError, match="need both"):
            pixel_metrics(score, mask)
