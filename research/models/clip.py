"""The frozen CLIP image tower as a source of patch tokens (Sec. 3.2, "P_i").

Taps are the raw outputs of the chosen transformer blocks, class token dropped, without `ln_post`
and without `proj` (paper: unspecified; here as its peers do). An image of another size than the
tower was trained on uses an interpolated position embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from clipsam.research.models.umci import mean_abnormal, to_image_size

_LEAST_LENGTH = 1e-6  # a token of nothing stays nothing


def normalise(image: Tensor) -> Tensor:
    """uint8 RGB [B,S,S,3] -> float32 [B,3,S,S] with CLIP's mean and standard deviation."""
    mean = torch.tensor(OPENAI_DATASET_MEAN, device=image.device) * 255
    std = torch.tensor(OPENAI_DATASET_STD, device=image.device) * 255
    # Colours apart first: engines are slow at arithmetic with three values side by side.
    colours = image.float().permute(0, 3, 1, 2)
    return (colours - mean[:, None, None]) / std[:, None, None]


def resize_position_embedding(embedding: Tensor, grid: int) -> Tensor:
    """[1 + g*g, C] -> [1 + grid*grid, C]: the class row kept, the square part bicubic."""
    old = round((embedding.shape[0] - 1) ** 0.5)
    if old == grid:
        return embedding
    square = embedding[1:].T.reshape(1, -1, old, old)
    resized = F.interpolate(
        square, size=(grid, grid), mode="bicubic", antialias=grid < old, align_corners=False
    )
    return torch.cat([embedding[:1], resized.flatten(2)[0].T])


class ClipFeatures(nn.Module):
    """open_clip's `VisionTransformer`, tapped after the blocks `taps` (counted from 1).

    `image_size` must be a multiple of the patch size; the grid is `image_size // patch_size`.
    """

    position: Tensor

    def __init__(self, visual: Any, taps: Sequence[int], image_size: int) -> None:
        super().__init__()
        patch = int(visual.patch_size[0])
        blocks = len(visual.transformer.resblocks)
        if image_size % patch:
            raise ValueError(
                f"image_size={image_size} is not a multiple of the patch size {patch}."
            )
        if not taps or list(taps) != sorted(set(taps)) or not 1 <= min(taps) <= max(taps) <= blocks:
            raise ValueError(f"features_list={list(taps)} must rise within 1..{blocks}.")
        self.visual = visual
        self.taps = tuple(taps)
        self.image_size = image_size
        self.grid = image_size // patch
        self.width = int(visual.class_embedding.shape[0])
        position = resize_position_embedding(visual.positional_embedding.detach(), self.grid)
        self.register_buffer("position", position.clone(), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised RGB [B,3,S,S] -> one [B,H,W,C] a tap."""
        return run_tower(self.visual, image, self.position, self.taps)


def compared_stage(taps: int) -> int:
    """Of so many taps the one whose tokens a bundle returns: the middle one, the upper of two."""
    return taps // 2


def compared_tokens(taps: Sequence[Tensor]) -> Tensor:
    """The tokens by which parts are compared and regions named: taps [B,H,W,C] -> float16
    [B,H*W,C], row by row, each of length 1."""
    tokens = taps[compared_stage(len(taps))].flatten(1, 2).float()
    length = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True).clamp_min(_LEAST_LENGTH)
    unit: Tensor = (tokens / length).half()
    return unit


class PatchTextSimilarity(nn.Module):
    """The baseline "w/o UMCI" of table 2, with the interface of `UMCIStages`.

    Each tap goes through the tower's own `ln_post` and `proj`; the logits are cosine similarities
    with the two text features at CLIP's initial temperature, as WinCLIP has it. Nothing is trained.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, taps: Sequence[Tensor], text: Tensor, size: int) -> list[Tensor]:
        """Taps (one [B,H,W,C] a stage) and text [B,C_t,2] -> per stage logits [B,2,size,size]."""
        logits = []
        for tokens in taps:
            projected = F.normalize(self.visual.ln_post(tokens) @ self.visual.proj, dim=-1)
            similarity = torch.einsum("bhwc,bck->bkhw", projected, F.normalize(text, dim=1))
            logits.append(to_image_size(similarity / 0.07, size))
        return logits

    def rough_map(self, taps: Sequence[Tensor], text: Tensor, size: int) -> Tensor:
        """O_f [B,size,size]: mean over stages of P(abnormal)."""
        return mean_abnormal(self(taps, text, size))


def run_tower(visual: Any, image: Tensor, position: Tensor, taps: Sequence[int]) -> list[Tensor]:
    """The tower up to its last tap, with the given position embedding [1 + h*w, C]."""
    embedded = visual.conv1(image).permute(0, 2, 3, 1)  # B,h,w,C
    return run_blocks(visual, embedded, position, taps)


def run_blocks(
    visual: Any, embedded: Tensor, position: Tensor, taps: Sequence[int]
) -> list[Tensor]:
    """The transformer on embedded patches [B,h,w,C] -> one [B,h,w,C] a tap.

    `position` is [1 + h*w, C], or [B, 1 + h*w, C] for windows of a larger grid.
    """
    grid = embedded.shape[1:3]
    class_token = visual.class_embedding.to(embedded.dtype).expand(embedded.shape[0], 1, -1)
    x = torch.cat([class_token, embedded.flatten(1, 2)], dim=1)
    x = visual.ln_pre(x + position.to(x.dtype))
    out = []
    for number, block in enumerate(visual.transformer.resblocks[: taps[-1]], start=1):
        x = block(x)
        if number in taps:
            out.append(x[:, 1:].unflatten(1, grid))
    return out
