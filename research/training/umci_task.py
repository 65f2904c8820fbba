"""UMCI as a task of the training loop: frozen CLIP, the text of each item, Eq. 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipsam.research.data.items import Batch, SyntheticImages
from clipsam.research.data.wording import PLAIN, SWAPPED
from clipsam.research.evaluation.metrics import pixel_metrics
from clipsam.research.models.clip import ClipFeatures, normalise
from clipsam.research.models.presets import Preset, get_tokenizer
from clipsam.research.models.prompt_ensemble import state_feature, text_features
from clipsam.research.models.umci import UMCIStages, mean_abnormal
from clipsam.research.training.losses import total_loss

VALIDATION_SEED = 2**40


class UmciTask:
    """Eq. 12 on the stages' logits; validation by pixel AP on held-out procedural images.

    `validation` is their number; without any there is no score. With `bf16` CLIP and UMCI run in
    mixed precision; weights, loss and optimizer stay float32. With `steering` (training does some
    of it, see `steering.py`) the score asks for both: a UMCI that ignores its words finds defects
    sooner and would be kept.
    """

    trains_clip = False  # whether gradients reach CLIP

    def __init__(
        self,
        preset: Preset,
        clip: Any,
        device: torch.device,
        validation: int = 96,
        bf16: bool = False,
        steering: bool = False,
        focal_weight: float = 1.0,
    ) -> None:
        self.bf16, self.steering, self.focal_weight = bf16, steering, focal_weight
        self.size, self.device = preset.clip_image_size, device
        self.clip = clip.to(device).requires_grad_(False)
        self.features = ClipFeatures(clip.visual, preset.features_list, self.size).to(device)
        self.module: nn.Module = UMCIStages(preset.umci).to(device)
        self.network = self.module  # the loop wraps it for several processes
        self.tokenizer = get_tokenizer()
        self._text: dict[tuple[str, str], Tensor] = {}
        held_out = SyntheticImages(self.size, VALIDATION_SEED, validation)
        self._validation = [held_out[i] for i in range(validation)]

    def text(self, categories: Sequence[str], wordings: Sequence[str]) -> Tensor:
        """L [B,C_t,2] of a batch's categories and wordings, computed once each."""
        return torch.stack([self._words(*pair) for pair in zip(categories, wordings, strict=True)])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Eq. 12, a mean over the batch's images."""
        images, masks, categories, wordings = batch
        target = torch.stack([_target(m, w) for m, w in zip(masks, wordings, strict=True)])
        logits = self._logits(images, self.text(categories, wordings), self.network)
        return total_loss(logits, target.to(self.device), focal_weight=self.focal_weight), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Pixel AP, AUROC and F1-max on the held-out images; nothing without them.

        "score" is the AP; with steering its mean with 1 - the AUROC under swapped words.
        """
        if not self._validation:
            return {}
        if self._validation[0][0].ndim == 3:  # CLIP is frozen: look at these images only once
            self._validation = [
                (self.extract(image[None])[0].half().cpu(), mask, category, wording)
                for image, mask, category, wording in self._validation
            ]
        plain = self._metrics(PLAIN)
        figures = {"score": plain["ap"], "auroc": plain["auroc"], "f1": plain["f1_max"]}
        if self.steering:
            swapped = self._metrics(SWAPPED)["auroc"]
            score = (plain["ap"] + 1 - swapped) / 2
            figures |= {"score": score, "ap": plain["ap"], "swapped": swapped}
        return figures

    def _metrics(self, wording: str) -> dict[str, float]:
        maps, truth = [], []
        for image, mask, category, _ in self._validation:
            text = self.text([category], [wording])
            rough = mean_abnormal(self._logits(image[None], text, self.module))
            maps.append(rough[0].cpu().numpy())
            truth.append(mask.numpy() > 0.5)
        return pixel_metrics(np.stack(maps), np.stack(truth))

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Images uint8 [B,S,S,3] -> all taps, float32 [B,taps,H,W,C]."""
        return torch.stack(self.features(normalise(images.to(self.device))), dim=1)

    @property
    def feature_shape(self) -> tuple[int, int, int, int]:
        """(taps, H, W, C) of one image."""
        grid = self.features.grid
        return len(self.features.taps), grid, grid, self.features.width

    def _logits(self, images: Tensor, text: Tensor, network: nn.Module) -> list[Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if images.ndim == 5:  # cached features
                taps = list(images.to(self.device).float().unbind(1))
            else:
                with torch.set_grad_enabled(self.trains_clip and torch.is_grad_enabled()):
                    taps = self.features(normalise(images.to(self.device)))
            stages: list[Tensor] = network(taps, text, self.size)
        return [logits.float() for logits in stages]

    def _words(self, category: str, wording: str) -> Tensor:
        known = self._text.get((category, wording))
        if known is None:
            known = text_features(self.clip, self.tokenizer, category)
            if wording == SWAPPED:
                known = known.flip(1)
            elif wording != PLAIN:
                states = [wording + " {}"]
                other = state_feature(self.clip, self.tokenizer, category, states)
                known = torch.stack([known[:, 0], other], dim=1)
            self._text[category, wording] = known
        return known


def _target(mask: Tensor, wording: str) -> Tensor:
    """What the "abnormal" column means under this wording (see `steering`)."""
    if wording == SWAPPED:
        return 1 - mask
    return mask if wording == PLAIN else torch.zeros_like(mask)
