"""All the work between the engines against the same work done plainly, to the last bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from support import plain_host as plain
from support.host_scenes import MASKS, SAM_SIZE, Scene, make_scene

from clipsam.runtime.stages.decision import DecisionOptions, decide
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.preprocess import sam_input
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts
from clipsam.runtime.stages.sam import Masks

DECISION = DecisionOptions(min_area=0)


def rough_map(scene: Scene) -> np.ndarray:
    height, width = scene.image.shape[:2]
    return np.asarray(cv2.resize(scene.rough, (width, height)), np.float32)


@pytest.mark.parametrize("boxes", [0, 1, 3])
@pytest.mark.parametrize("components", [0, 1, 40])
@pytest.mark.parametrize("size", [(300, 400), (1024, 1024)])
def test_the_runtime_and_the_plain_host_find_the_same(
    size: tuple[int, int], boxes: int, components: int
) -> None:
    scene = make_scene(*size, boxes, components, seed=4)
    options, rough = PromptOptions(min_area=0, max_boxes=max(1, boxes)), rough_map(scene)

    prompts = find_prompts(rough, options)
    masks = Masks(scene.logits, scene.scores, scene.geometry) if boxes else None
    final = fixed_scale(fuse(rough, masks), MASKS)
    decision = decide(final, prompts, DECISION, refined=masks is not None)

    score, plain_boxes, points, plain_components = plain.plain_prompts(rough, options)
    total = np.array(rough)
    if boxes:
        total = plain.plain_fuse(rough, scene.logits, scene.scores, scene.geometry)
    plain_final = plain.plain_fixed_scale(total, MASKS)
    mask, regions = plain.plain_decide(plain_final, plain_components, DECISION, refined=boxes > 0)

    assert decision.score == score
    assert len(prompts.components) == components
    found = [
        ((c.x_min, c.y_min, c.x_max, c.y_max), c.area, c.centroid, c.evidence)
        for c in prompts.components
    ]
    assert found == [(c.box, c.area, c.centroid, c.evidence) for c in plain_components]
    np.testing.assert_array_equal(prompts.boxes, plain_boxes)
    np.testing.assert_array_equal(prompts.points, points)
    np.testing.assert_array_equal(final, plain_final)
    np.testing.assert_array_equal(decision.mask, mask)
    assert decision.regions == regions
    assert decision.mask.any() == (components > 0)


def test_sams_input_is_the_plain_resize() -> None:
    scene = make_scene(300, 400, 0, 1)
    found, _ = sam_input(scene.image, scene.geometry)
    height, width = scene.geometry.sam_shape
    np.testing.assert_array_equal(
        found[0, :height, :width], plain.plain_resize(scene.image, height, width)
    )
    assert found.shape == (1, SAM_SIZE, SAM_SIZE, 3)
    assert not found[0, height:].any()
