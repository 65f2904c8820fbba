"""MobileSAM's image encoder: TinyViT by timm where SAM has a ViT; what follows is SAM's own.

timm's TinyViT is for classification. Here its last stage keeps its resolution, so that 1024 px
give 64 x 64 as in SAM, and SAM's neck takes the place of the classifier. MobileSAM's checkpoint
names the same tensors after another implementation: `from_published` translates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models import tiny_vit
from torch import Tensor, nn

PREFIX = "image_encoder."
_DIMS, _HEADS = (64, 128, 160, 320), (2, 4, 5, 10)  # TinyViT-5M's
_CLASSIFIER = ("norm_head.", "head.")  # in the published file, and never used


class TinyVitEncoder(nn.Module):
    """Pixels [1,3,D,D], normalised -> embedding [1,C,D/16,D/16], as `ImageEncoderViT` does.

    Args:
      image_size: D in pixels, a multiple of 16.
      channels: C.
    """

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        self.img_size = image_size  # by this name `Sam` and `SamPredictor` ask for it
        trunk: Any = tiny_vit.TinyVit(
            num_classes=0, embed_dims=_DIMS, num_heads=_HEADS, drop_path_rate=0.0
        )
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        for module in trunk.modules():
            if isinstance(module, tiny_vit.Attention):
                module.__class__ = _Attention
        self.patch_embed, self.stages = trunk.patch_embed, trunk.stages
        self.neck = nn.Sequential(
            nn.Conv2d(_DIMS[-1], channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.neck(self.stages(self.patch_embed(pixels)))
        return embedding


class _Attention(tiny_vit.Attention):
    """timm's keeps the biases of a device aside, which an exporter would take for the weights."""

    def get_attention_biases(self, device: torch.device) -> Tensor:
        where = self.attention_bias_idxs
        assert isinstance(where, Tensor)
        return self.attention_biases[:, where]


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of MobileSAM's `mobile_sam.pt` by the names of ours; others keep theirs."""
    found = {}
    for name, value in state.items():
        inner = name.removeprefix(PREFIX)
        if inner == name or not inner.startswith(_CLASSIFIER):
            found[_our_name(name) if inner != name else name] = value
    return found


def _our_name(name: str) -> str:
    name = re.sub(r"\.patch_embed\.seq\.(\d)\.", _convolution, name)
    # There a stage ends by halving the resolution, here the next one begins with it.
    name = re.sub(r"\.layers\.(\d)\.downsample\.", _next_stage, name)
    name = re.sub(r"\.layers\.(\d)\.", r".stages.\1.", name)
    return re.sub(r"\.c\.weight$", ".conv.weight", name)


def _convolution(found: re.Match[str]) -> str:
    return f".patch_embed.conv{int(found[1]) // 2 + 1}."


def _next_stage(found: re.Match[str]) -> str:
    return f".stages.{int(found[1]) + 1}.downsample."
