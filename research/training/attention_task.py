"""Learning to attend among averages of tokens what attention among all of them says.

The towers of `tiny` were trained attending among all tokens. Attending among averages
(`CoarseAttention`) with the same weights says nearly the same; a few hundred steps towards the taps
of the former bring back what is missing (docs/large_pictures.md).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from clipsam.research.models.clip import normalise, run_blocks
from clipsam.research.models.presets import Preset
from clipsam.research.training.clip_task import held_out


class AttentionTask:
    """The tower's blocks behind a frozen embedding, towards those of the same weights that attend
    among all tokens.

    Args:
      clip: of the preset `tiny`, with the weights to start from; its blocks are trained in place.
      validation: pictures never trained on that weights are chosen by.
    """

    def __init__(self, preset: Preset, clip: Any, device: torch.device, validation: int) -> None:
        self.taps, self.device = preset.features_list, device
        self.visual = clip.visual.to(device).requires_grad_(False)
        self.teacher = deepcopy(self.visual)
        for block in self.teacher.transformer.resblocks:
            block.attn.cell = 1
        self.module: nn.Module = self.visual.transformer.requires_grad_(True)
        self._validation = [
            torch.from_numpy(sample.image)[None] for sample in held_out(preset, validation)
        ]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The mean square of what the taps differ by, of their variance; mean over the taps."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._difference(batch["image"]), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """ "score": less the same on pictures never trained on, in float32."""
        if not self._validation:
            return {}
        return {"score": -float(torch.stack([*map(self._difference, self._validation)]).mean())}

    def _difference(self, image: Tensor) -> Tensor:
        """Of images uint8 [B,S,S,3]."""
        with torch.no_grad():
            embedded = self.visual.conv1(normalise(image.to(self.device))).permute(0, 2, 3, 1)
            wanted = self._taps(self.teacher, embedded)
        found = self._taps(self.visual, embedded)
        return torch.stack(
            [(a - b).square().mean() / b.var() for a, b in zip(found, wanted, strict=True)]
        ).mean()

    def _taps(self, visual: Any, embedded: Tensor) -> list[Tensor]:
        taps = run_blocks(visual, embedded, visual.positional_embedding, self.taps)
        return [tap.float() for tap in taps]
