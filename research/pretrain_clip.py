"""Pre-training of the miniature CLIP: captions (contrastive) and dense self-made labels.

The contrastive loss is CLIP's. Because procedural pictures are far too few for captions alone to
shape patch tokens, every tap also predicts, through a linear head that is thrown away afterwards,
which kind of defect its patch shows and where in the patch (2 x 2 cells).

Three steps. The convolutional stem learns alone first, to predict the cells: together with the
transformer it stayed at chance for hundreds of steps. Then the whole tower, on windows of half the
grid with their part of the position embedding: four times as many pictures for the same work. The
last part of the training sees whole pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from clipsam.research.clip_features import normalise, run_tower
from clipsam.research.metrics import pixel_metrics
from clipsam.research.presets import Preset, build_clip, get_tokenizer
from clipsam.research.synthetic import DEFECT_KINDS, Sample, sample_from_seed

CELLS = 2  # cells per patch side that the dense heads predict
VALIDATION_SEED = 2**40


class CaptionedWindows(Dataset[dict[str, Tensor]]):
    """Item i is sample `seed + i`, cut into `windows` windows (0: the whole picture)."""

    def __init__(self, preset: Preset, seed: int, length: int, windows: int) -> None:
        self.size = preset.clip_image_size
        self.patch = 8
        self.seed, self.length, self.windows = seed, length, windows
        self.tokenizer = get_tokenizer()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Stacks over windows n: image uint8 [n,s,s,3], cells [n,g*2,g*2], kind [n,g,g],
        corner [n,2] (row and column of the window in the grid), tokens [n,77], spoken [n]."""
        sample = sample_from_seed(self.seed + index, self.size)
        rng = np.random.default_rng([self.seed, index])
        grid = self.size // self.patch
        side = grid // 2 if self.windows else grid
        tokens = self.tokenizer([sample.caption])[0]
        area = int(sample.mask.sum())
        rows: list[dict[str, Any]] = []
        for number in range(max(1, self.windows)):
            top, left = (int(v) for v in rng.integers(0, grid - side + 1, 2))
            if self.windows and area and number == 0:  # one window looks at a defect
                ys, xs = np.nonzero(sample.mask)
                pick = int(rng.integers(len(ys)))
                jitter = rng.integers(1, side, 2)
                top = int(np.clip(ys[pick] // self.patch - jitter[0], 0, grid - side))
                left = int(np.clip(xs[pick] // self.patch - jitter[1], 0, grid - side))
            y, x, s = top * self.patch, left * self.patch, side * self.patch
            mask = sample.mask[y : y + s, x : x + s]
            cells = cv2.resize(
                mask.astype(np.float32), (side * CELLS, side * CELLS), interpolation=cv2.INTER_AREA
            )
            rows.append(
                {
                    "image": sample.image[y : y + s, x : x + s],
                    "cells": cells,
                    "kind": patch_kinds(sample.kind_map[y : y + s, x : x + s], side),
                    "corner": np.array([top, left]),
                    "tokens": tokens.numpy(),
                    # A caption that names a defect outside the window would teach nonsense.
                    "spoken": not area or mask.sum() >= 0.4 * area,
                }
            )
        return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}


def patch_kinds(kind_map: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """HxW kinds -> [side,side]: a patch's most frequent kind if it covers over 15 %, else 0."""
    patches = kind_map.reshape(side, kind_map.shape[0] // side, side, -1).transpose(0, 2, 1, 3)
    flat = patches.reshape(side * side, -1)
    counts = np.stack([(flat == k).sum(axis=1) for k in range(1, len(DEFECT_KINDS) + 1)])
    kinds = np.where(counts.max(axis=0) > 0.15 * flat.shape[1], counts.argmax(axis=0) + 1, 0)
    return kinds.reshape(side, side).astype(np.int64)


def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Windows of all items in one batch."""
    return {key: torch.cat([item[key] for item in items]) for key in items[0]}


class _Module(nn.Module):
    """CLIP and the heads that exist during pre-training only."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.clip = build_clip(preset.clip_name)
        width = preset.umci.visual_dim
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(DEFECT_KINDS) + 1 + CELLS**2))
            for _ in preset.features_list
        )


class StemTask:
    """The stem alone: a linear head predicts which cells of each patch are anomalous."""

    def __init__(self, preset: Preset, device: torch.device, validation: int = 32) -> None:
        self.device = device
        stem = build_clip(preset.clip_name).visual.conv1
        head = nn.Conv2d(preset.umci.visual_dim, CELLS**2, 1)
        self.module = nn.Sequential(stem, head).to(device)
        self._validation = held_out(preset, validation)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        loss = cell_loss(
            self._logits(batch["image"].to(self.device)), batch["cells"].to(self.device)
        )
        return loss, {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """AP and AUROC of the cells on pictures never trained on."""
        return cell_metrics(self._validation, self._logits)

    def _logits(self, image: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            cells = self.module(normalise(image))
        return unfold_cells(cells.permute(0, 2, 3, 1).float())


class ClipTask:
    """CLIP's loss plus the dense ones (see the module's text)."""

    def __init__(self, preset: Preset, device: torch.device, validation: int = 48) -> None:
        self.preset, self.device = preset, device
        self.module = _Module(preset).to(device)
        self.kinds = len(DEFECT_KINDS) + 1
        # Patches without a defect outnumber the others; weigh them down.
        self.kind_weight = torch.tensor([0.3] + [1.0] * len(DEFECT_KINDS), device=device)
        self._validation = held_out(preset, validation)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16):
            taps = self._taps(batch["image"], batch["corner"])
        kind_loss, cell_loss = self._dense(taps, batch["kind"], batch["cells"])
        words = self._contrastive(taps[-1], batch["tokens"], batch["spoken"])
        total = kind_loss + 2 * cell_loss + 0.3 * words
        figures = {"kind": kind_loss.item(), "cell": cell_loss.item(), "words": words.item()}
        return total, figures

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """AP and AUROC of the last tap's cells on pictures never trained on."""
        return cell_metrics(self._validation, self._last_cells)

    def _last_cells(self, image: Tensor) -> Tensor:
        image = image.to(self.device)
        taps = self._taps(image, torch.zeros(1, 2, dtype=torch.int64))
        return unfold_cells(self.module.heads[-1](taps[-1].float())[..., self.kinds :])

    def _taps(self, image: Tensor, corner: Tensor) -> list[Tensor]:
        visual = self.module.clip.visual
        position = visual.positional_embedding
        grid = round((position.shape[0] - 1) ** 0.5)
        square = position[1:].unflatten(0, (grid, grid))
        side = image.shape[1] // int(visual.patch_size[0])
        windows = [
            square[top : top + side, left : left + side].flatten(0, 1)
            for top, left in corner.tolist()
        ]
        window = torch.stack([torch.cat([position[:1], w]) for w in windows])
        return run_tower(visual, normalise(image), window, self.preset.features_list)

    def _dense(self, taps: list[Tensor], kind: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        kind_losses, cell_losses = [], []
        for head, tokens in zip(self.module.heads, taps, strict=True):
            out = head(tokens.float())
            kind_logits = out[..., : self.kinds].flatten(0, 2)
            kind_losses.append(F.cross_entropy(kind_logits, kind.flatten(), self.kind_weight))
            cell_losses.append(cell_loss(unfold_cells(out[..., self.kinds :]), cells))
        weights = torch.tensor([0.15, 0.2, 0.25, 0.4], device=kind.device)
        return (torch.stack(kind_losses) * weights).sum(), (
            torch.stack(cell_losses) * weights
        ).sum()

    def _contrastive(self, last: Tensor, tokens: Tensor, spoken: Tensor) -> Tensor:
        if int(spoken.sum()) < 2:
            return last.new_zeros(())
        clip, visual = self.module.clip, self.module.clip.visual
        pooled = visual.ln_post(last[spoken].float().mean(dim=(1, 2))) @ visual.proj
        image = F.normalize(pooled, dim=-1)
        text = F.normalize(clip.encode_text(tokens[spoken]).float(), dim=-1)
        logits = clip.logit_scale.exp().clamp(max=50) * image @ text.T
        # Pictures that share a caption are not each other's negatives.
        same = (tokens[spoken][:, None] == tokens[spoken][None]).all(dim=-1).float()
        target = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def held_out(preset: Preset, count: int) -> list[Sample]:
    """Pictures that no training sees."""
    return [sample_from_seed(VALIDATION_SEED + i, preset.clip_image_size) for i in range(count)]


def cell_loss(logits: Tensor, cells: Tensor) -> Tensor:
    """Cross-entropy of logits [B,h,w] with each cell's defective share; defects weigh sevenfold."""
    return F.binary_cross_entropy_with_logits(logits, cells, 1 + 6 * cells)


def cell_metrics(samples: list[Sample], predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """ "score" (AP) and "auroc" of predicted cells: image uint8 [1,S,S,3] -> logits [1,h,w]."""
    maps, truth = [], []
    for sample in samples:
        maps.append(predict(torch.from_numpy(sample.image)[None])[0].float().cpu().numpy())
        area = cv2.resize(
            sample.mask.astype(np.float32), maps[-1].shape[::-1], interpolation=cv2.INTER_AREA
        )
        truth.append(area > 0.4)
    metrics = pixel_metrics(np.stack(maps), np.stack(truth))
    return {"score": metrics["ap"], "auroc": metrics["auroc"]}


def unfold_cells(cells: Tensor) -> Tensor:
    """[B,h,w,4] -> [B,h*2,w*2]: cell predictions laid out as a picture."""
    b, h, w, _ = cells.shape
    grid = cells.reshape(b, h, w, CELLS, CELLS).permute(0, 1, 3, 2, 4)
    return grid.reshape(b, h * CELLS, w * CELLS)
