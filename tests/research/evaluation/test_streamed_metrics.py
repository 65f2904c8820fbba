"""Streamed metrics against scikit-learn and an independent PRO, on random and adversarial maps.

The bound that comes with a figure is what is tested: never exceeded, and small where it has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from support.exact_pro import pro_score
from support.pro_200 import pro_200

from clipsam.research.evaluation.streamed_metrics import BINS, PixelHistogram

Maps = list[NDArray[np.float32]]
Masks = list[NDArray[np.bool_]]
ROUNDING = 1e-9  # of sums over many pixels, in either computation


def blobs(rng: np.random.Generator, shape: tuple[int, int] = (64, 80)) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(rng.random(shape) > 0.998, iterations=3))


def noisy(rng: np.random.Generator, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    return (0.7 * rng.random(mask.shape) + 0.3 * mask * rng.random(mask.shape)).astype(np.float32)


def smooth(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [blobs(rng) for _ in range(4)]
    masks[1][:] = False
    return [ndimage.gaussian_filter(noisy(rng, m), 2) for m in masks], masks


def scaled(factor: float) -> Callable[[np.random.Generator], tuple[Maps, Masks]]:
    def make(rng: np.random.Generator) -> tuple[Maps, Masks]:
        maps, masks = smooth(rng)
        return [m * np.float32(factor) for m in maps], masks

    return make


def few_levels(rng: np.random.Generator) -> tuple[Maps, Masks]:
    maps, masks = smooth(rng)
    return [np.floor(m * 9).astype(np.float32) / np.float32(9) for m in maps], masks


def saturated(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [blobs(rng) for _ in range(2)]
    return [np.ones(m.shape, np.float32) for m in masks], masks


def half_saturated(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [blobs(rng) for _ in range(2)]
    return [np.clip(3 * noisy(rng, m) - 1, 0, 1) for m in masks], masks


def one_region(rng: np.random.Generator) -> tuple[Maps, Masks]:
    mask = np.zeros((64, 80), bool)
    mask[20:40, 30:50] = True
    return [noisy(rng, mask)], [mask]


def one_pixel(rng: np.random.Generator) -> tuple[Maps, Masks]:
    mask = np.zeros((64, 80), bool)
    mask[20, 30] = True
    return [noisy(rng, mask)], [mask]


def touching(rng: np.random.Generator) -> tuple[Maps, Masks]:
    mask = np.zeros((64, 80), bool)
    mask[8:16, 8:16] = mask[16:24, 16:24] = True  # by a corner: one region
    mask[40:60:2] = True  # rows with a gap of one: ten
    return [noisy(rng, mask)], [mask]


def thousands(rng: np.random.Generator) -> tuple[Maps, Masks]:
    mask = np.zeros((150, 150), bool)
    mask[::3, ::3] = True  # 2500 regions of one pixel
    return [noisy(rng, mask)], [mask]


def almost_all_defective(rng: np.random.Generator) -> tuple[Maps, Masks]:
    mask = np.ones((40, 40), bool)
    mask[0, :7] = False
    return [noisy(rng, mask)], [mask]


def perfect(rng: np.random.Generator) -> tuple[Maps, Masks]:
    masks = [blobs(rng) for _ in range(2)]
    return [(0.5 * m + 0.4 * noisy(rng, m)).astype(np.float32) for m in masks], masks


def inverted(rng: np.random.Generator) -> tuple[Maps, Masks]:
    maps, masks = perfect(rng)
    return [1 - m for m in maps], masks


def in_one_bin(rng: np.random.Generator) -> tuple[Maps, Masks]:
    """All different scores in one bin, the defective ones highest: what binning does worst."""
    masks = [blobs(rng, (30, 30)) for _ in range(2)]
    ranks = [rng.permutation(m.size).reshape(m.shape) + m.size * m for m in masks]
    return [(0.5 + 2.0**-24 * rank).astype(np.float32) for rank in ranks], masks


def below_the_floor(rng: np.random.Generator) -> tuple[Maps, Masks]:
    return scaled(1e-14)(rng)


CASES: dict[str, Callable[[np.random.Generator], tuple[Maps, Masks]]] = {
    make.__name__: make
    for make in (
        smooth, few_levels, saturated, half_saturated, one_region, one_pixel, touching, thousands,
        almost_all_defective, perfect, inverted, in_one_bin, below_the_floor,
    )
}  # fmt: skip
CASES |= {"a thousandth": scaled(1e-3), "a billionth": scaled(1e-9)}
COARSE = ("in_one_bin", "below_the_floor")  # where the bound is large, and says so
TIES = ("few_levels", "saturated")  # where it is zero


def exact(maps: Maps, masks: Masks) -> dict[str, float]:
    """By scikit-learn."""
    scores = np.concatenate([m.ravel() for m in maps])
    labels = np.concatenate([m.ravel() for m in masks])
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "ap": float(average_precision_score(labels, scores)),
        "f1_max": float(f1.max()),
    }


def independent_pro(maps: Maps, masks: Masks, limits: Sequence[float]) -> list[float]:
    """By SciPy's components and a sorted array for each region; shares no code with ours."""
    good = np.sort(np.concatenate([m[~t] for m, t in zip(maps, masks, strict=True)]))
    regions = []
    for score, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        order = np.argsort(labels, axis=None, kind="stable")
        cuts = np.searchsorted(labels.ravel()[order], np.arange(1, count + 2))
        flat = score.ravel()[order]
        regions += [np.sort(flat[a:b]) for a, b in pairwise(cuts)]
    thresholds = np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]
    overlap = np.zeros(len(thresholds))
    for region in regions:
        overlap += 1 - np.searchsorted(region, thresholds, side="left") / len(region)
    y = np.append(0, overlap / len(regions))
    x = np.append(0, 1 - np.searchsorted(good, thresholds, side="left") / len(good))
    areas = []
    for limit in limits:
        area = 0.0
        for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
            end = min(x1, limit)
            if x0 < end:  # what is left of the straight line up to the limit
                area += (end - x0) * (y0 + 0.5 * (y1 - y0) * (end - x0) / (x1 - x0))
        areas.append(area / limit)
    return areas


def fill(maps: Maps, masks: Masks) -> PixelHistogram:
    histogram = PixelHistogram()
    for score, mask in zip(maps, masks, strict=True):
        histogram.add(score, mask)
    return histogram


@pytest.mark.parametrize("case", CASES)
def test_no_figure_is_further_from_the_exact_one_than_its_bound(case: str) -> None:
    maps, masks = CASES[case](np.random.default_rng(len(case)))
    truth = exact(maps, masks)
    histogram = fill(maps, masks)
    limits = (0.05, 0.3, 1.0)
    for limit, pro in zip(limits, independent_pro(maps, masks, limits), strict=True):
        assert pro_score(maps, masks, limit) == pytest.approx(pro, abs=ROUNDING)
        found, errors = histogram.metrics(limit), histogram.errors(limit)
        for name, value in {**truth, "pro": pro}.items():
            assert abs(found[name] - value) <= errors[name] + ROUNDING, name
            if case in TIES:
                assert errors[name] == 0
            elif case not in COARSE:
                assert errors[name] < (0.02 if name in ("ap", "f1_max") else 1e-3), name


def test_in_one_bin_the_error_is_real_and_so_is_the_bound() -> None:
    """Scores that only differ within a bin: the figure is far off, and the bound admits it."""
    maps, masks = in_one_bin(np.random.default_rng(0))
    found, truth = fill(maps, masks).metrics(), exact(maps, masks)
    assert truth["auroc"] == 1
    assert found["auroc"] == pytest.approx(0.5)
    assert fill(maps, masks).errors()["auroc"] == pytest.approx(0.5)


def test_on_many_pixels_the_bounds_are_below_a_thousandth() -> None:
    """16 images of 512 x 512: what a table's third decimal needs."""
    rng = np.random.default_rng(1)
    masks = [blobs(rng, (512, 512)) for _ in range(16)]
    histogram = fill([ndimage.gaussian_filter(noisy(rng, m), 1) for m in masks], masks)
    assert max(histogram.errors().values()) < 1e-3


def test_the_order_of_images_and_the_split_into_parts_do_not_matter() -> None:
    maps, masks = half_saturated(np.random.default_rng(2))
    more, others = few_levels(np.random.default_rng(3))
    whole = fill(maps + more, masks + others)
    parts = fill(more, others) + fill(maps, masks)
    assert parts.metrics() == pytest.approx(whole.metrics(), abs=1e-12)
    assert parts.errors() == pytest.approx(whole.errors(), abs=1e-12)
    assert parts.regions == whole.regions


def test_two_values_in_one_bin_from_two_images_are_not_taken_for_a_tie() -> None:
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    low, high = np.float32(0.6), np.nextafter(np.float32(0.6), np.float32(1))
    first, second = np.full((4, 4), low), np.full((4, 4), high)
    assert fill([first], [mask]).errors()["auroc"] == 0
    for both in (
        fill([first, second], [mask, mask]),
        fill([first], [mask]) + fill([second], [mask]),
    ):
        assert both.errors()["auroc"] > 0


def test_regions_are_counted_8_connected() -> None:
    assert fill(*touching(np.random.default_rng(0))).regions == 11
    assert fill(*thousands(np.random.default_rng(0))).regions == 2500


def test_memory_does_not_grow_with_images() -> None:
    histogram = PixelHistogram()
    mask = np.zeros((32, 32), bool)
    mask[3:9, 3:9] = True
    rng = np.random.default_rng(0)

    def size() -> int:
        arrays = [v for v in vars(histogram).values() if isinstance(v, np.ndarray)]
        assert not [v for v in vars(histogram).values() if isinstance(v, (list, dict))]
        return sum(a.nbytes for a in arrays)

    before = size()
    for _ in range(50):
        histogram.add(rng.random((32, 32), dtype=np.float32), mask)
    assert size() == before <= 32 * BINS


@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01])
def test_scores_that_cannot_be_binned_are_refused(bad: float) -> None:
    score = np.full((3, 3), 0.5, np.float32)
    score[1, 1] = bad
    with pytest.raises(ValueError, match=r"must lie in \[0,1\]"):
        PixelHistogram().add(score, np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match=r"same \[H,W\]"):
        PixelHistogram().add(score, np.zeros((3, 4), bool))


def test_one_kind_of_pixels_has_no_metrics() -> None:
    score = np.full((3, 3), 0.5, np.float32)
    for mask in (np.zeros((3, 3), bool), np.ones((3, 3), bool)):
        histogram = fill([score], [mask])
        assert not histogram.complete
        with pytest.raises(ValueError, match="both"):
            histogram.metrics()


def test_minus_zero_is_zero() -> None:
    mask = np.zeros((2, 2), bool)
    mask[0, 0] = True
    score = np.array([[-0.0, 0.0], [0.0, -0.0]], np.float32)
    assert fill([score], [mask]).metrics()["auroc"] == 0.5


@pytest.mark.parametrize("case", ["smooth", "half_saturated", "touching"])
def test_pro_with_200_thresholds_is_the_slow_loops(case: str) -> None:
    """The streamed form against the loop, thresholds moved to the next bin."""
    maps, masks = CASES[case](np.random.default_rng(5))
    assert fill(maps, masks).pro_200() == pytest.approx(pro_200(maps, masks), abs=5e-3)


def test_the_loop_of_200_thresholds_is_right_by_hand() -> None:
    """Ten good pixels and one region of two. Above a threshold of t both of the region's pixels
    and the good ones with a score over t; below 0.3 that are one and two of ten."""
    score = np.array([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 0.75, 0.95]], np.float32)
    mask = np.zeros((1, 12), bool)
    mask[0, 10:] = True
    # Rates left are 0.1 (t in [0.8, 1): overlap 0.5 up to 0.95, then 0) and 0.2 (t in [0.7, 0.8):
    # overlap 1, then 0.5), stretched to 0 and 1: a rectangle and a triangle at most.
    found = pro_200([score], [mask])
    assert found == pytest.approx(0.5)
