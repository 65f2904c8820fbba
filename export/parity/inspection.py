"""One picture through the whole pipeline, against what float32 said of it.

No torch and no onnx in here: bundles are held against PyTorch by it, and engines on the box against
the bundle's golden outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.export.precisions.recipes import TOLERANCES
from clipsam.runtime.backends.base import Array, Session, SessionWrapper
from clipsam.runtime.bundle import FLOAT32, Bundle
from clipsam.runtime.images.image import Image
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.prompts import PromptOptions, Prompts, find_prompts
from clipsam.runtime.stages.rough_map import rough_map

MASK_PIXELS = 2  # a mask that differs in no more is the same, however small
SMALL_MASK = 1024  # pixels; of a smaller one, an edge that moved by a pixel is no difference


@dataclass(frozen=True)
class Picture:
    """An image, how it was inspected, and what float32 said of it.

    Attributes:
      options: of the prompts, with the threshold they were found at.
      masks: bool [3q,H,W], SAM's of every prompt in turn.
      scores: float32 [q,3].
      final: float32 [H,W], the map on the fixed scale.
    """

    name: str
    image: Image
    category: str
    options: PromptOptions
    prompts: Prompts
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    final: NDArray[np.float32]
    verdict: str


@dataclass(frozen=True)
class EndToEndCheck:
    """One image through the engines, against float32."""

    precision: str
    image: str
    prompts: int
    same_boxes: bool  # what float32 must have; other precisions move an edge by a pixel
    mask_iou: float  # `overlap`: the worst mask's in float32, else the mean; float32's prompts
    flipped: int  # pixels of the image where any mask differs
    scores: float  # largest difference
    final_map: float  # largest difference where no mask differs
    same_verdict: bool
    passed: bool


def compare_picture(
    bundle: Bundle, sessions: Mapping[str, Session], picture: Picture, precision: str
) -> EndToEndCheck:
    """The verdict is the engines' own from beginning to end; SAM is asked float32's prompts, so
    that masks can be compared one by one. `precision` says how near they must be."""
    manifest = replace(bundle.manifest, prompts=picture.options)
    model = ClipSAM(Bundle(bundle.folder, manifest, bundle.id), dict(sessions))
    result = model.inspect(picture.image, picture.category, norm="fixed")
    prompts, limit = picture.prompts, TOLERANCES[precision]

    rough = rough_map(sessions["clip_umci"], picture.image, bundle.text(picture.category))
    own = find_prompts(rough, picture.options)
    same_boxes = np.array_equal(own.boxes, prompts.boxes)
    exact = precision == FLOAT32
    masks, overlaps, same_masks, scores = None, [1.0], True, 0.0
    flipped = np.zeros(picture.image.shape[:2], np.bool_)
    if len(prompts):
        masks = model.segmenter.decode(model.segmenter.encode(picture.image), prompts)
        scores = float(np.abs(masks.scores - picture.scores).max())
        overlaps = []
        side = int(sessions["sam_decoder"].outputs["logits"].shape[-1])
        excused = 0.0 if exact else pixels_of_a_logit(picture.image.shape[:2], side)
        for (found, _), wanted in zip(masks.binary(), picture.masks, strict=True):
            differs = found != wanted
            pixels = int(differs.sum())
            overlaps.append(1.0 if pixels <= excused else overlap(found, wanted, exact))
            same_masks &= overlaps[-1] >= limit.mask_iou or pixels <= MASK_PIXELS
            flipped |= differs
    mask_iou = min(overlaps) if exact else sum(overlaps) / len(overlaps)
    final = result.score_map
    if not np.array_equal(own.coordinates(), prompts.coordinates()):
        weight = manifest.fusion.mask_weight
        final = fixed_scale(fuse(rough, masks, weight), model.masks_per_box, weight)
    final_map = float(np.abs(final - picture.final)[~flipped].max(initial=0.0))
    same_verdict = result.verdict == picture.verdict
    passed = (
        (same_boxes and same_masks if exact else mask_iou >= limit.mask_iou)
        and scores <= limit.scores
        and final_map <= limit.final_map
        and same_verdict
    )
    return EndToEndCheck(
        precision, picture.name, len(prompts), same_boxes, mask_iou, int(flipped.sum()), scores,
        final_map, same_verdict, passed,
    )  # fmt: skip


def pixels_of_a_logit(shape: tuple[int, int], side: int) -> float:
    """How many pixels of an image of this shape one of SAM's side x side logits covers.

    One that rounds to the other side of zero makes or unmakes a mask of that size.
    """
    return float((max(shape) / side) ** 2)


def overlap(found: NDArray[np.bool_], wanted: NDArray[np.bool_], exact: bool = False) -> float:
    """IoU of a mask [H,W] with the one wanted, 1 if both are empty.

    Unless `exact`, what lies beside a pixel of the other mask does not count of a small one: logits
    that round to the other side of zero move an edge by a pixel, which of a speck leaves an IoU of
    a half and less, and of a part 0.99. A mask that is gone lies beside nothing.
    """
    differs, either = found != wanted, found | wanted
    if not exact and int(wanted.sum()) < SMALL_MASK:
        differs = (found & ~_grown(wanted)) | (wanted & ~_grown(found))
    return 1 - int(differs.sum()) / max(1, int(either.sum()))


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def faults(check: EndToEndCheck) -> str:
    """What differs in a picture that did not pass; for use inside a sentence."""
    limit, exact = TOLERANCES[check.precision], check.precision == FLOAT32
    found = {
        "its components": exact and not check.same_boxes,
        f"a mask (IoU {check.mask_iou:.4f}, at least {limit.mask_iou} is needed)": check.mask_iou
        < limit.mask_iou,
        f"a score (by {check.scores:.1e}, {limit.scores:.0e} is allowed)": check.scores
        > limit.scores,
        f"the final map (by {check.final_map:.1e}, {limit.final_map:.0e} is allowed)": (
            check.final_map > limit.final_map
        ),
        "the verdict": not check.same_verdict,
    }
    return ", ".join(what for what, is_wrong in found.items() if is_wrong)


class Remembering(SessionWrapper):
    """A session that does not run again for what it was fed last."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self._fed: Mapping[str, Array] = {}
        self._returned: Mapping[str, Array] = {}

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        again = self._fed and all(np.array_equal(feeds[n], self._fed[n]) for n in feeds)
        if not again or not set(wanted) <= set(self._returned):
            self._returned = super()._run(feeds, wanted)
            self._fed = {name: array.copy() for name, array in feeds.items()}
        return {name: self._returned[name].copy() for name in wanted}
