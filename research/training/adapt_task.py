"""Fine-tuning to good parts with planted defects, as a task of the training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipsam.research.data.items import Item, SyntheticImages
from clipsam.research.data.planted import FeaturePool
from clipsam.research.evaluation.metrics import pixel_metrics
from clipsam.research.models.presets import Preset
from clipsam.research.models.umci import UMCIStages, mean_abnormal
from clipsam.research.training.umci_task import VALIDATION_SEED, UmciTask

FORGOTTEN = 0.03
"""What the AP on procedural pictures may lose before weights count as having forgotten."""
REPLAYED = 32  # procedural pictures that tell what was forgotten
_SCORE_SHARE = 0.01  # an image's score is the mean of this share of its map


class AdaptTask(UmciTask):
    """UMCI from trained weights; with `embedding`, which `tiny` alone has, CLIP's embedding, too.

    `held_out` are pictures of parts that are not trained on.
    """

    def __init__(
        self,
        preset: Preset,
        clip: Any,
        umci: UMCIStages,
        device: torch.device,
        held_out: Sequence[Item],
        *,
        embedding: bool = False,
    ) -> None:
        # As the weights it starts from were trained: docs/train.md, the model card of `tiny`.
        focal_weight = 20.0 if preset.clip_name == "tiny" else 1.0
        super().__init__(preset, clip, device, 0, focal_weight=focal_weight)
        self.network = self.umci = umci.to(device)
        self.trains_clip = embedding
        parts: dict[str, nn.Module] = {"umci": self.umci}
        if embedding:
            parts["embedding"] = clip.visual.conv1.requires_grad_(True)
        self.module = nn.ModuleDict(parts)
        self.held_out = self.seen(held_out)
        procedural = SyntheticImages(self.size, VALIDATION_SEED, REPLAYED)
        self.replayed = self.seen([procedural[i] for i in range(REPLAYED)])
        self.remembered = 0.0

    def seen(self, items: Sequence[Item]) -> list[Item]:
        """The items with CLIP's features in place of images, unless CLIP is trained."""
        if self.trains_clip:
            return list(items)
        pool = FeaturePool(list(items), len(items), self.extract)
        return [pool[i] for i in range(len(items))]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures on the held-out parts; "score" is the mean of pixel AP and image AUROC, less what
        the procedural pictures' AP lost of `remembered` beyond `FORGOTTEN`."""
        figures = self.measure(self.held_out)
        replay = self.measure(self.replayed)["pixel_ap"]
        lost = max(0.0, self.remembered - replay - FORGOTTEN)
        score = (figures["pixel_ap"] + figures["image_auroc"]) / 2 - lost
        return {"score": score, **figures, "replay_ap": replay}

    @torch.no_grad()
    def measure(self, items: Sequence[Item]) -> dict[str, float]:
        """Image AUROC, pixel AUROC and pixel AP of some pictures, pooled."""
        maps, truth = [], []
        for image, mask, category, wording in items:
            maps.append(self.rough(image[None], category, wording))
            truth.append(mask.numpy() > 0.5)
        pixels = pixel_metrics(np.stack(maps), np.stack(truth))
        return {
            "image_auroc": image_auroc(maps, [bool(mask.any()) for mask in truth]),
            "pixel_auroc": pixels["auroc"],
            "pixel_ap": pixels["ap"],
        }

    def rough(self, image: Tensor, category: str, wording: str) -> np.ndarray[Any, Any]:
        """O_f float32 [S,S] of one picture uint8 [1,S,S,3]."""
        text = self.text([category], [wording])
        return mean_abnormal(self._logits(image, text, self.umci))[0].cpu().numpy()


def image_auroc(maps: Sequence[np.ndarray[Any, Any]], defective: Sequence[bool]) -> float:
    """How well the highest values of the maps tell defective pictures from good ones."""
    from sklearn.metrics import roc_auc_score  # see `pixel_metrics`

    scores = []
    for rough in maps:
        values = np.ravel(rough)
        count = max(1, round(_SCORE_SHARE * values.size))
        scores.append(float(np.partition(values, -count)[-count:].mean()))
    return float(roc_auc_score(defective, scores))
