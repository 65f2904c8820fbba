"""The final map (Eq. 9) by hand, and the decision taken on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from clipsam.runtime.core.result import Region
from clipsam.runtime.ops.components import Component, find_components, pixel_area
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.decision import DecisionOptions, decide
from clipsam.runtime.stages.fusion import FusionOptions, check_norm, fixed_scale, fuse, image_scale
from clipsam.runtime.stages.prompts import PromptOptions, Prompts, find_prompts
from clipsam.runtime.stages.sam import Masks

Map = NDArray[np.float32]


def masks(low: list[list[NDArray[np.bool_]]], scores: list[list[float]]) -> Masks:
    """Masks of 4x4 images as logits in a low-resolution frame of the same size."""
    logits = np.array([[np.where(m, 8.0, -8.0) for m in prompt] for prompt in low], np.float32)
    return Masks(logits, np.array(scores, np.float32), Geometry(4, 4, 4))


def grid(*pixels: tuple[int, int]) -> NDArray[np.bool_]:
    """A 4x4 mask with these (row, column) set."""
    mask = np.zeros((4, 4), np.bool_)
    for row, column in pixels:
        mask[row, column] = True
    return mask


def test_fusion_is_equation_nine_by_hand() -> None:
    rough = np.full((4, 4), 0.1, np.float32)
    rough[0, 0] = 0.8
    everywhere = np.ones((4, 4), np.bool_)
    found = masks(
        [
            [grid((0, 0)), grid((0, 0), (0, 1)), grid()],
            [grid((3, 3)), everywhere, grid((0, 0))],
        ],
        [[0.9, 0.5, 0.7], [0.6, 0.2, 0.4]],
    )
    total = fuse(rough, found)
    expected = np.full((4, 4), 0.1 + 0.2)
    expected[0, 0] = 0.8 + 0.9 + 0.5 + 0.2 + 0.4
    expected[0, 1] = 0.1 + 0.5 + 0.2
    expected[3, 3] = 0.1 + 0.6 + 0.2
    np.testing.assert_allclose(total, expected, atol=1e-6)
    assert total.dtype == np.float32
    assert rough[0, 0] == np.float32(0.8)  # the rough map is left as it was
    np.testing.assert_allclose(fixed_scale(total, 3), expected / 4, atol=1e-6)


def test_no_prompt_is_a_quarter_of_the_rough_map() -> None:
    rough = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(fuse(rough, None), rough)
    np.testing.assert_array_equal(fixed_scale(fuse(rough, None), 3), rough / 4)


def test_the_fixed_scale_is_clipped() -> None:
    total = np.array([[-0.5, 0, 2, 4, 9]], np.float32)
    np.testing.assert_array_equal(fixed_scale(total, 3), [[0, 0, 0.5, 1, 1]])


def test_the_image_scale_is_min_max() -> None:
    total = np.array([[1, 2, 5]], np.float32)
    np.testing.assert_allclose(image_scale(total), [[0, 0.25, 1]])
    np.testing.assert_array_equal(image_scale(np.full((2, 2), 0.3, np.float32)), np.zeros((2, 2)))
    assert image_scale(total).dtype == np.float32


def test_a_clean_part_stays_dark_on_the_fixed_scale_only() -> None:
    rough = np.linspace(0.0, 0.05, 16, dtype=np.float32).reshape(4, 4)
    assert fixed_scale(rough, 3).max() < 0.02
    assert image_scale(rough).max() == 1


def test_unknown_normalisations_are_refused() -> None:
    assert FusionOptions().norm == "fixed"
    with pytest.raises(ValueError, match="norm='dataset' must be one of fixed, image"):
        FusionOptions("dataset")
    with pytest.raises(ValueError, match="norm=''"):
        check_norm("")


def found(components: Sequence[Component], score: float = 0.9) -> Prompts:
    """What the rough map said, as far as a decision asks."""
    nothing = np.zeros((0, 2), np.float32)
    return Prompts(score, 0.47, nothing, nothing, tuple(components))


def refined(
    final: Map, threshold: float, min_area: float, components: Sequence[Component] | None = None
) -> tuple[NDArray[np.bool_], tuple[Region, ...]]:
    if components is None:  # the rough map found what the final map shows
        smallest = pixel_area(min_area, final.shape)
        components = find_components(final > threshold, final, smallest)
    decision = decide(final, found(components), DecisionOptions(threshold, min_area), refined=True)
    return decision.mask, decision.regions


def blank(height: int = 40, width: int = 50) -> Map:
    return np.zeros((height, width), np.float32)


def test_a_rectangle_gives_its_box_area_and_contour() -> None:
    final = blank()
    final[10:15, 20:30] = 0.5
    final[12, 25] = 0.8
    mask, regions = refined(final, 0.25, 0)
    np.testing.assert_array_equal(mask, final > 0.25)
    (region,) = regions
    assert region.box == (20, 10, 10, 5)
    assert region.area == 50
    assert region.centroid == pytest.approx((24.5, 12))
    assert region.score == pytest.approx(0.8)
    assert set(region.contour) == {(20, 10), (29, 10), (29, 14), (20, 14)}


def test_a_ring_keeps_its_hole() -> None:
    final = blank()
    final[10:21, 10:21] = 0.6
    final[13:18, 13:18] = 0
    mask, (region,) = refined(final, 0.25, 0)
    assert region.area == mask.sum() == 121 - 25
    assert not mask[15, 15]
    assert region.centroid == pytest.approx((15, 15))
    assert {(10, 10), (20, 20)} <= set(region.contour)  # the outer outline
    assert (13, 13) not in region.contour


def test_diagonal_pixels_are_one_region() -> None:
    final = blank()
    final[[5, 6, 7], [5, 6, 7]] = 0.9
    _, (region,) = refined(final, 0.25, 0)
    assert region.area == 3
    assert region.box == (5, 5, 3, 3)
    assert {(5, 5), (7, 7)} <= set(region.contour)


@pytest.mark.parametrize(
    ("rows", "columns", "box"),
    [
        (slice(0, 3), slice(0, 4), (0, 0, 4, 3)),
        (slice(37, 40), slice(46, 50), (46, 37, 4, 3)),
        (slice(0, 40), slice(0, 50), (0, 0, 50, 40)),
    ],
)
def test_regions_that_touch_the_border(
    rows: slice, columns: slice, box: tuple[int, int, int, int]
) -> None:
    final = blank()
    final[rows, columns] = 0.4
    _, (region,) = refined(final, 0.25, 0)
    x, y, width, height = region.box
    assert region.box == box
    corners = {(x, y), (x + width - 1, y), (x, y + height - 1), (x + width - 1, y + height - 1)}
    assert corners == set(region.contour)


def test_min_area_decides_about_one_pixel() -> None:
    final = blank()
    final[7, 9] = 0.9
    mask, (region,) = refined(final, 0.25, 1e-4)  # 0.2 pixels: at least one counts
    assert (region.box, region.area, region.contour) == ((9, 7, 1, 1), 1, ((9, 7),))
    assert region.centroid == (9, 7)
    assert mask.sum() == 1
    mask, regions = refined(final, 0.25, 2 / final.size)
    assert regions == ()
    assert not mask.any()


def test_a_small_region_leaves_the_mask_too() -> None:
    final = blank()
    final[7, 9] = 0.9
    final[20:30, 20:30] = 0.5
    mask, regions = refined(final, 0.25, 4 / final.size)
    assert len(regions) == 1
    assert mask.sum() == 100
    assert not mask[7, 9]


def test_interlocked_regions_keep_their_own_pixels() -> None:
    """A small region within the box of a larger one takes nothing from it."""
    final = blank()
    final[5:20, 5] = final[5, 5:20] = 0.5  # an L
    final[12:15, 12:15] = 0.9  # in its box
    mask, (one, other) = refined(final, 0.25, 0)
    np.testing.assert_array_equal(mask, final > 0.25)
    assert (one.area, other.area) == (29, 9)
    assert (one.score, other.score) == pytest.approx((0.5, 0.9))


def test_the_largest_evidence_comes_first() -> None:
    final = blank()
    final[1:3, 1:3] = 1.0  # 4
    final[10:20, 10:20] = 0.3  # 30
    final[30:35, 30:35] = 0.9  # 22.5
    _, regions = refined(final, 0.25, 0)
    assert [region.area for region in regions] == [100, 25, 4]


def test_the_threshold_is_exclusive() -> None:
    final = blank()
    final[3:6, 3:6] = 0.25
    assert refined(final, 0.25, 0)[1] == ()
    assert len(refined(final, 0.2499, 0)[1]) == 1


def components_of(rough: Map) -> list[Component]:
    return list(find_prompts(rough, PromptOptions(min_area=0)).components)


def test_sam_may_not_argue_a_component_away() -> None:
    rough = blank()
    rough[5:9, 5:9] = rough[20:30, 20:30] = 0.9
    final = rough / np.float32(4)
    final[20:25, 18:30] = 0.8  # SAM redrew one component and missed the other
    mask, regions = refined(final, 0.25, 0, components_of(rough))
    expected = final > 0.25
    expected[5:9, 5:9] = True
    np.testing.assert_array_equal(mask, expected)
    assert len(regions) == 2


def test_a_speck_that_sam_left_does_not_stand_for_the_component() -> None:
    rough = blank()
    rough[5:9, 5:9] = 0.9
    final = rough / np.float32(4)
    final[6, 6] = 0.8
    mask, (region,) = refined(final, 0.25, 4 / final.size, components_of(rough))
    np.testing.assert_array_equal(mask, rough > 0.47)
    assert region.area == 16


def test_without_sam_the_components_are_the_answer() -> None:
    rough = blank()
    rough[5:9, 5:9] = 0.6
    rough[20:30, 20:30] = 0.99
    options = DecisionOptions(threshold=0.2)  # which 0.99 / 4 exceeds and 0.6 / 4 does not
    decision = decide(rough / np.float32(4), found(components_of(rough)), options, refined=False)
    np.testing.assert_array_equal(decision.mask, rough > 0.47)
    assert [region.area for region in decision.regions] == [100, 16]


@pytest.mark.parametrize(
    ("score", "reasons", "verdict"),
    [
        (0.48, (), "anomalous"),
        (0.47, (), "good"),
        (0.1, ("black",), "not_judged"),
        (0.48, ("black",), "anomalous"),  # the score alone says so, whatever else is wrong
    ],
)
def test_the_verdict_is_the_score_above_the_limit(
    score: float, reasons: tuple[str, ...], verdict: str
) -> None:
    decision = decide(blank(), found((), score), DecisionOptions(), refined=False, reasons=reasons)
    assert decision.verdict == verdict
    assert (decision.score, decision.limit, decision.reasons) == (score, 0.47, reasons)


@pytest.mark.parametrize("shape", [(17, 93), (93, 17), (64, 64), (31, 33)])
def test_the_mask_is_the_union_of_the_regions(shape: tuple[int, int]) -> None:
    final = np.random.default_rng(0).random(shape, np.float32)
    mask, regions = refined(final, 0.8, 3 / final.size)
    assert mask.sum() == sum(region.area for region in regions) > 0
    assert not (mask & ~(final > 0.8)).any()
    assert all(region.area >= 3 for region in regions)


@pytest.mark.parametrize("options", [{"threshold": 0}, {"threshold": 1}, {"min_area": 1}], ids=str)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        DecisionOptions(**options)


def test_a_region_that_touches_no_component_is_none() -> None:
    """SAM redraws what CLIP found; a mask that lies elsewhere finds nothing of its own."""
    rough, final = blank(), blank()
    rough[5:8, 5:8] = 0.9
    final[4:9, 4:9] = 0.6
    final[30:35, 30:35] = 0.7
    mask, (region,) = refined(final, 0.25, 0, components_of(rough))
    assert region.box == (4, 4, 5, 5)
    assert mask.sum() == 25


def test_a_mask_has_its_weight_in_equation_9() -> None:
    rough = np.full((8, 8), 0.4, np.float32)
    assert fixed_scale(rough, 3, 0.05)[0, 0] == pytest.approx(0.4 / 1.15)
    assert FusionOptions().mask_weight == 1
    with pytest.raises(ValueError, match="mask_weight"):
        FusionOptions(mask_weight=1.5)
    with pytest.raises(ValueError, match="mask_weight"):
        FusionOptions(crop_mask_weight=-0.1)
    assert FusionOptions(mask_weight=0.02).weight(cropped=True) == 0.02
    both = FusionOptions(mask_weight=0.02, crop_mask_weight=0.2)
    assert (both.weight(cropped=False), both.weight(cropped=True)) == (0.02, 0.2)
