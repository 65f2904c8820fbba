"""The oracle: the whole method in plain PyTorch, written to be read beside the paper.

Everything the engine does fast is done here plainly: CLIP and UMCI as modules, maps resized with
`F.interpolate`, SAM through segment-anything's own `SamPredictor`, Eq. 9 as a sum over masks.
Only what the paper leaves to choice is shared with the runtime, so that it is chosen once: how an
image is brought to CLIP's size, and how prompts are drawn from the rough map.

    reference = Reference(features, umci, sam, text={"object": L}, prompts=PromptOptions())
    result = reference.inspect(image, "object")
    result.final        # the anomaly map, float32 [H,W] in [0,1]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from clipsam.research.models.clip import ClipFeatures, normalise
from clipsam.research.models.umci import UMCIStages
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.prompts import FOREGROUND, PromptOptions, Prompts, find_prompts


@dataclass(frozen=True)
class ReferenceResult:
    """Every step of one inspection; H x W is the image's size, q the number of prompts."""

    rough: NDArray[np.float32]  # O_f [H,W], P(abnormal)
    prompts: Prompts
    masks: NDArray[np.bool_]  # [q,3,H,W]
    scores: NDArray[np.float32]  # [q,3], SAM's predicted IoU
    final: NDArray[np.float32]  # [H,W] in [0,1], Eq. 9 on the fixed scale


class Reference:
    """CLIP with UMCI, then SAM, step by step.

    Args:
      features: CLIP's image tower with its taps.
      umci: one trained UMCI per tap.
      sam: segment-anything's model.
      text: L float32 [C_t,2] of every category.
      prompts: threshold, points and boxes of Eq. 7.
      mask_weight: of a mask in Eq. 9.
    """

    def __init__(
        self,
        features: ClipFeatures,
        umci: UMCIStages,
        sam: Sam,
        text: Mapping[str, NDArray[np.float32]],
        prompts: PromptOptions,
        mask_weight: float = 1.0,
    ) -> None:
        self.features, self.umci = features.eval(), umci.eval()
        self.predictor = SamPredictor(sam.eval())
        self.text, self.options, self.mask_weight = text, prompts, mask_weight

    def inspect(self, image: Image, category: str = "object") -> ReferenceResult:
        """Inspect one image, HxWx3 uint8 RGB, of a category that `text` holds."""
        return self.refine(image, self.rough_map(image, self.text[category]), self.options)

    def refine(
        self, image: Image, rough: NDArray[np.float32], options: PromptOptions
    ) -> ReferenceResult:
        """From the rough map [H,W] to the final one: Eq. 7, 8 and 9."""
        prompts = find_prompts(rough, options)
        masks, scores = segment(self.predictor, image, prompts)
        final = fuse(rough, masks, scores, self.mask_weight)
        return ReferenceResult(rough, prompts, masks, scores, final)

    @torch.no_grad()
    def rough_map(self, image: Image, text: NDArray[np.float32]) -> NDArray[np.float32]:
        """O_f [H,W]: UMCI's probability of "abnormal", in image coordinates (Eq. 1 to 6)."""
        size = self.features.image_size
        pixels = normalise(torch.from_numpy(clip_input(image, size)))  # 1,3,S,S
        taps = self.features(pixels)  # P_i, one [1,h,w,C] a stage
        stage_maps = []
        for stage, tokens in zip(self.umci.stages, taps, strict=True):
            logits = stage(tokens, torch.from_numpy(text)[None])  # O_i [1,2,h,w]
            logits = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
            stage_maps.append(logits.softmax(dim=1)[:, 1])  # [1,S,S]
        rough = torch.stack(stage_maps).mean(dim=0)  # O_f [1,S,S]
        rough = F.interpolate(rough[None], image.shape[:2], mode="bilinear", align_corners=False)
        found: NDArray[np.float32] = rough[0, 0].numpy()
        return found


@torch.no_grad()
def segment(
    predictor: SamPredictor, image: Image, prompts: Prompts
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Three masks [q,3,H,W] and scores [q,3] for every prompt (Eq. 8)."""
    height, width = image.shape[:2]
    if not len(prompts):
        return np.zeros((0, 3, height, width), np.bool_), np.zeros((0, 3), np.float32)
    transform, device = predictor.transform, predictor.device
    points = transform.apply_coords_torch(torch.from_numpy(prompts.points), (height, width))
    boxes = transform.apply_boxes_torch(torch.from_numpy(prompts.boxes), (height, width))
    points, boxes = points.to(device), boxes.to(device)
    labels = torch.full(points.shape[:2], FOREGROUND, device=device)
    masks, scores = [], []
    predictor.set_image(image)
    for i in range(len(prompts)):  # one by one: 48 masks of a large image are gigabytes
        mask, score, _ = predictor.predict_torch(
            points[i : i + 1], labels[i : i + 1], boxes[i : i + 1], multimask_output=True
        )
        masks.append(mask.cpu())
        scores.append(score.cpu())
    return torch.cat(masks).numpy(), torch.cat(scores).numpy()


def fuse(
    rough: NDArray[np.float32],
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    weight: float = 1.0,
) -> NDArray[np.float32]:
    """Eq. 9: `weighted_sum`, divided by its largest possible value for one box (4) and kept within
    0..1."""
    total = weighted_sum(rough, masks, scores, weight)
    return np.clip(total / (1 + 3 * weight), 0, 1).astype(np.float32)


def weighted_sum(
    rough: NDArray[np.float32],
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    weight: float = 1.0,
) -> NDArray[np.float64]:
    """O_f plus every mask times its score times `weight` (paper: 1)."""
    total = rough.astype(np.float64)
    for of_box, scores_of_box in zip(masks, scores, strict=True):
        for mask, score in zip(of_box, scores_of_box, strict=True):
            total = total + mask * float(score) * weight
    return total
