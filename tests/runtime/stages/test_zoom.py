"""Zoom: which crops SAM is shown, and their masks in image coordinates, against a restatement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.toy_bundle import SAM_SIZE, SCORES, build_toy_bundle, plain_part

from clipsam.runtime import ClipSAM, InspectOptions, OptionError
from clipsam.runtime.stages.fusion import FusionOptions
from clipsam.runtime.stages.preprocess import PreprocessOptions
from clipsam.runtime.stages.prompts import PromptOptions, Prompts, find_prompts
from clipsam.runtime.stages.zoom import MOST, choose_crops, crop_prompts

Box = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def zoomed(toy: Path) -> Iterator[ClipSAM]:
    options = InspectOptions(tiles="4x4", zoom="auto")
    with ClipSAM.open(toy, threads=1, options=options) as model:
        yield model


def prompts_of(boxes: list[Box], shape: tuple[int, int], points: str = "shared") -> Prompts:
    """Prompts for rectangles (x, y, width, height) of ones."""
    rough = np.zeros(shape, np.float32)
    for x, y, width, height in boxes:
        rough[y : y + height, x : x + width] = 1
    return find_prompts(rough, PromptOptions(min_area=0, points=points))


def part_with(boxes: list[Box]) -> NDArray[np.uint8]:
    image = plain_part(800, 1000)
    for x, y, width, height in boxes:
        image[y : y + height, x : x + width] = 250
    return image


FAR = [(100, 100, 30, 20), (700, 600, 20, 30)]
NEAR = [(100, 100, 30, 20), (150, 120, 20, 30)]


def test_every_box_is_in_one_crop_with_its_context() -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        shape = (int(rng.integers(300, 900)), int(rng.integers(300, 900)))
        boxes = [
            (int(rng.integers(shape[1] - 30)), int(rng.integers(shape[0] - 30)), 12, 9)
            for _ in range(1 + number % 12)
        ]
        prompts = prompts_of(boxes, shape)
        crops = choose_crops("auto", prompts, shape, 128)
        assert len(crops) <= MOST
        if not crops:
            continue
        assert sorted(i for crop in crops for i in crop.boxes) == list(range(len(prompts)))
        for crop in crops:
            assert 0 <= crop.left < crop.right <= shape[1]
            assert 0 <= crop.top < crop.bottom <= shape[0]
            for x_min, y_min, x_max, y_max in prompts.boxes[list(crop.boxes)].tolist():
                assert max(0, x_min - 6) >= crop.left
                assert max(0, y_min - 6) >= crop.top
                assert min(shape[1], x_max + 7) <= crop.right
                assert min(shape[0], y_max + 7) <= crop.bottom


def test_neighbours_share_a_crop_at_native_resolution() -> None:
    shape = (800, 1000)
    (crop,) = choose_crops("auto", prompts_of(NEAR, shape), shape, 128)
    assert (crop.right - crop.left, crop.bottom - crop.top) == (128, 128)
    assert len(choose_crops("auto", prompts_of(FAR, shape), shape, 128)) == 2


@pytest.mark.parametrize(
    ("option", "shape", "boxes"),
    [
        ("off", (800, 1000), FAR),
        ("auto", (130, 150), [(50, 50, 20, 20)]),  # SAM sees it all at its size
        ("auto", (800, 1000), [(10, 10, 900, 700)]),  # a defect as large as the part
        ("auto", (800, 1000), []),
    ],
)
def test_the_whole_is_shown_where_crops_gain_nothing(
    option: str, shape: tuple[int, int], boxes: list[Box]
) -> None:
    assert choose_crops(option, prompts_of(boxes, shape), shape, 128) == ()


@pytest.mark.parametrize("points", ["shared", "per_region"])
def test_a_crops_points_lie_on_its_own_components(points: str) -> None:
    shape = (800, 1000)
    prompts = prompts_of(FAR, shape, points)
    options = PromptOptions(min_area=0, points=points)
    for crop in choose_crops("auto", prompts, shape, 128):
        own = crop_prompts(crop, prompts, options)
        (index,) = crop.boxes
        np.testing.assert_array_equal(
            own.boxes[0], prompts.boxes[index] - [crop.left, crop.top, crop.left, crop.top]
        )
        x_min, y_min, x_max, y_max = own.boxes[0]
        xs, ys = own.points[0].T
        assert ((x_min <= xs) & (xs <= x_max) & (y_min <= ys) & (ys <= y_max)).all()
        if points == "per_region":
            np.testing.assert_array_equal(
                own.points[0], prompts.points[index] - [crop.left, crop.top]
            )


def test_equation_nine_is_applied_where_the_crop_lies(toy: Path, zoomed: ClipSAM) -> None:
    """The toy's masks are what is bright within a box: a crop at native size gives it exactly."""
    image = part_with(FAR)
    result = zoomed.inspect(image)
    assert (result.crops, result.prompts, len(result.regions)) == (2, 2, 2)
    rough = zoomed.inspect(image, deadline_ms=0).score_map
    gained = (result.score_map - rough) * 4
    assert zoomed.inspect(image, deadline_ms=0).crops == 0
    for x, y, width, height in FAR:
        inside = gained[y + 4 : y + height - 4, x + 4 : x + width - 4]
        np.testing.assert_allclose(inside, sum(SCORES), atol=1e-5)
        gained[y - 8 : y + height + 8, x - 8 : x + width + 8] = 0
    assert not gained.any()  # nothing anywhere else


def test_sam_sees_in_a_crop_what_it_misses_in_the_whole(toy: Path, zoomed: ClipSAM) -> None:
    image = part_with(FAR)
    options = InspectOptions(tiles="4x4", zoom="off")
    with ClipSAM.open(toy, threads=1, options=options) as model:
        whole, rough = model.inspect(image), model.inspect(image, deadline_ms=0).score_map
    result = zoomed.inspect(image)
    assert (whole.crops, whole.refined) == (0, True)
    assert (whole.verdict, whole.score) == (result.verdict, result.score)  # SAM decides nothing
    x, y, width, height = FAR[0]
    middle = y + height // 2, x + width // 2
    assert whole.score_map[middle] == rough[middle]
    assert result.score_map[middle] > rough[middle] + 0.5


def test_zoom_changes_no_bit_where_it_gains_nothing(toy: Path) -> None:
    image = part_with([])[:140, :150].copy()
    image[40:70, 50:100] = 250
    assert max(image.shape) < 1.25 * SAM_SIZE
    results = []
    for zoom in ("off", "auto"):
        with ClipSAM.open(toy, threads=1, options=InspectOptions(zoom=zoom)) as model:
            results.append(model.inspect(image))
    assert results[0].refined
    np.testing.assert_array_equal(results[0].score_map, results[1].score_map)


def test_a_good_part_runs_no_sam(zoomed: ClipSAM) -> None:
    result = zoomed.inspect(plain_part(800, 1000))
    assert (result.verdict, result.crops, result.refined) == ("good", 0, False)
    assert "encode" not in result.timings


def test_the_bundle_chooses_where_nobody_says(tmp_path: Path) -> None:
    folder = build_toy_bundle(tmp_path / "b", preprocess=PreprocessOptions(zoom="auto"))
    for zoom, crops in ((None, 2), ("auto", 2), ("off", 0)):
        options = InspectOptions(tiles="4x4", zoom=zoom)
        with ClipSAM.open(folder, threads=1, options=options) as model:
            assert model.inspect(part_with(FAR)).crops == crops


def test_masks_of_crops_have_a_weight_of_their_own(tmp_path: Path) -> None:
    fusion = FusionOptions(mask_weight=0.02, crop_mask_weight=0.1)
    folder = build_toy_bundle(tmp_path / "b", fusion=fusion)
    image, gained = part_with([(100, 100, 150, 150)]), []  # large enough for the whole, too
    for zoom in ("off", "auto"):
        options = InspectOptions(tiles="4x4", zoom=zoom)
        with ClipSAM.open(folder, threads=1, options=options) as model:
            rough = model.inspect(image, deadline_ms=0)
            result = model.inspect(image)
        assert result.map_limit == rough.map_limit  # one scale, whatever the weight
        gained.append((result.score_map - rough.score_map).max() * 1.06)
    assert gained == pytest.approx([0.02 * sum(SCORES), 0.1 * sum(SCORES)], abs=1e-4)


def test_a_line_zooms_as_inspect_does(zoomed: ClipSAM) -> None:
    image = part_with(FAR)
    (part,) = zoomed.inspect_many([image])
    np.testing.assert_array_equal(part.result().score_map, zoomed.inspect(image).score_map)
    assert part.result().crops == 2


def test_another_zoom_is_refused() -> None:
    with pytest.raises(OptionError, match="zoom"):
        InspectOptions(zoom="on")
