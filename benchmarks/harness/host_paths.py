"""The work between the engines twice: as the runtime does it, and plainly.

Each goes from the image and the engines' outputs to the result, stage by stage.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from support import plain_host as plain

from clipsam.runtime.backends.base import check_finite
from clipsam.runtime.core.result import Result
from clipsam.runtime.ops.components import Component
from clipsam.runtime.stages.decision import Decision, DecisionOptions, decide
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.preprocess import clip_input, sam_input
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts
from clipsam.runtime.stages.sam import Masks
from harness.host_scenes import CLIP_SIZE, MASKS, SAM_SIZE, Scene

STAGES = ("clip input", "rough map", "prompts", "sam input", "masks", "decision", "result")
DECISION = DecisionOptions(min_area=0)

Map = NDArray[np.float32]
Clock = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Outcome:
    """All that a path made, to be compared with what the other made."""

    arrays: tuple[NDArray[np.generic], ...]
    components: tuple[tuple[object, ...], ...]
    json: str

    def same(self, other: Outcome) -> bool:
        """Whether every array, component and region is the same to the last bit."""
        return (
            self.json == other.json
            and self.components == other.components
            and all(map(np.array_equal, self.arrays, other.arrays))
        )


def fast(scene: Scene, clock: Clock) -> Outcome:
    """As `ClipSAM.inspect` does it."""
    with clock("clip input"):
        to_clip = clip_input(scene.image, CLIP_SIZE)
    rough = _rough_map(scene, clock)
    with clock("prompts"):
        prompts = find_prompts(rough, _options(scene))
        fed = scene.geometry.to_sam(prompts.coordinates())
    masks, to_sam = None, np.zeros(0, np.uint8)
    if len(prompts):
        with clock("sam input"):
            to_sam, _ = sam_input(scene.image, scene.geometry)
        with clock("masks"):
            check_finite({"logits": scene.logits}, "logits")
            masks = Masks(scene.logits, scene.scores, scene.geometry)
    with clock("masks"):
        final = fixed_scale(fuse(rough, masks), MASKS)
    with clock("decision"):
        decision = decide(final, prompts, DECISION, refined=masks is not None)
    json = _result(scene, final, decision, clock)
    components = tuple(map(_fields, prompts.components))
    return Outcome((to_clip, to_sam, rough, fed, final, decision.mask), components, json)


def plainly(scene: Scene, clock: Clock) -> Outcome:
    """The same by `plain_host`."""
    with clock("clip input"):
        to_clip = clip_input(scene.image, CLIP_SIZE)
    rough = _rough_map(scene, clock)
    with clock("prompts"):
        score, boxes, points, components = plain.plain_prompts(rough, _options(scene))
        corners = np.concatenate([points, boxes.reshape(-1, 2, 2)], axis=1)
        fed = scene.geometry.to_sam(corners)
    total, to_sam = np.array(rough), np.zeros(0, np.uint8)
    if len(boxes):
        with clock("sam input"):
            height, width = scene.geometry.sam_shape
            to_sam = np.zeros((1, SAM_SIZE, SAM_SIZE, 3), np.uint8)
            to_sam[0, :height, :width] = plain.plain_resize(scene.image, height, width)
        with clock("masks"):
            check_finite({"logits": scene.logits}, "logits")
            total = plain.plain_fuse(rough, scene.logits, scene.scores, scene.geometry)
    with clock("masks"):
        final = plain.plain_fixed_scale(total, MASKS)
    with clock("decision"):
        mask, regions = plain.plain_decide(final, components, DECISION, refined=len(boxes) > 0)
        decision = Decision(mask, regions, score, _options(scene).deciding)
    json = _result(scene, final, decision, clock)
    found = tuple((c.box, c.area, c.centroid, c.evidence) for c in components)
    return Outcome((to_clip, to_sam, rough, fed, final, mask), found, json)


PATHS = {"plain": plainly, "fast": fast}


def _options(scene: Scene) -> PromptOptions:
    return PromptOptions(min_area=0, max_boxes=max(1, len(scene.logits)))


def _rough_map(scene: Scene, clock: Clock) -> Map:
    with clock("rough map"):
        check_finite({"rough": scene.rough}, "rough")
        height, width = scene.image.shape[:2]
        rough = cv2.resize(scene.rough, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(rough, np.float32)


def _result(
    scene: Scene,
    final: Map,
    decision: Decision,
    clock: Clock,
) -> str:
    with clock("result"):
        result = Result(
            verdict=decision.verdict,
            score=decision.score,
            limit=decision.limit,
            regions=decision.regions,
            category="object",
            height=scene.image.shape[0],
            width=scene.image.shape[1],
            prompts=len(scene.logits),
            dropped=0,
            refined=True,
            norm="fixed",
            bundle="",
            timings={},
            score_map=final,
            mask=decision.mask,
        )
    return result.to_json()


def _fields(c: Component) -> tuple[object, ...]:
    return (c.x_min, c.y_min, c.x_max, c.y_max), c.area, c.centroid, c.evidence
