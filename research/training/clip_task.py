"""Pre-training of the miniature CLIP: captions (contrastive) and dense self-made labels.

The contrastive loss is CLIP's. Because procedural pictures are far too few for captions alone to
shape patch tokens, the embedding and every tap also predict, through heads that are thrown away
afterwards, which kind of defect each token shows and how much of it.

Two steps: the convolutional embedding learns alone, to label its tokens; then the transformer and
the text tower learn on the frozen embedding, attending within quarters of the picture (attention
over a quarter of the tokens costs a sixteenth) and, for the last steps, over all of it. Its blocks
start as identities, so that the taps are never worse than the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from clipsam.research.evaluation.metrics import pixel_metrics
from clipsam.research.models.clip import normalise, run_blocks
from clipsam.research.models.presets import Preset, build_clip, get_tokenizer
from clipsam.research.synthetic.sample import Sample, sample_from_seed
from clipsam.runtime.planting.kinds import KINDS

VALIDATION_SEED = 2**40
CLASSES = len(KINDS) + 1  # "normal" is class 0


class CaptionedImages(Dataset[dict[str, Tensor]]):
    """Item i is sample `seed + i`, a share of them `fine`, another with `even` kinds; never
    repeats."""

    def __init__(
        self, preset: Preset, seed: int, length: int, fine: float = 0, even: float = 0
    ) -> None:
        self.size, self.seed, self.length = preset.clip_image_size, seed, length
        self.fine, self.even = fine, even
        self.grid = token_grid(preset)
        self.tokenizer = get_tokenizer()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """image uint8 [S,S,3], share [g,g] of each token that is defective, kind [g,g], figure
        [g,g,2]: the shares within the undamaged outline and of what is there; tokens [77] of the
        caption."""
        sample = sample_from_seed(self.seed + index, self.size, fine=self.fine, even=self.even)
        return {
            "image": torch.from_numpy(sample.image),
            "share": torch.from_numpy(token_shares(sample.mask, self.grid)),
            "kind": torch.from_numpy(token_kinds(sample.kind_map, self.grid)),
            "figure": torch.from_numpy(
                np.stack([token_shares(x, self.grid) for x in (sample.outline, sample.present)], -1)
            ),
            "tokens": self.tokenizer([sample.caption])[0],
        }


def token_grid(preset: Preset) -> int:
    """Tokens a side of the preset's image tower."""
    visual = build_clip(preset.clip_name).visual
    return int(preset.clip_image_size // visual.patch_size[0])


def token_shares(mask: NDArray[np.uint8], grid: int) -> NDArray[np.float32]:
    """HxW mask of 0 and 1 -> [grid,grid]: the share of each token that is defective."""
    shares = cv2.resize(mask.astype(np.float32), (grid, grid), interpolation=cv2.INTER_AREA)
    return np.asarray(shares, np.float32)


def token_kinds(kind_map: NDArray[np.uint8], grid: int) -> NDArray[np.int64]:
    """HxW kinds -> [grid,grid]: a token's most frequent kind if it covers over 15 %, else 0."""
    patches = kind_map.reshape(grid, kind_map.shape[0] // grid, grid, -1).transpose(0, 2, 1, 3)
    flat = patches.reshape(grid * grid, -1)
    counts = np.stack([(flat == k).sum(axis=1) for k in range(1, CLASSES)])
    kinds = np.where(counts.max(axis=0) > 0.15 * flat.shape[1], counts.argmax(axis=0) + 1, 0)
    return kinds.reshape(grid, grid).astype(np.int64)


class DenseHead(nn.Module):
    """Tokens [B,h,w,C] -> logits of kind [B,h,w,CLASSES], of share [B,h,w], of figure [B,h,w,2]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Linear(width, CLASSES + 3)
        with torch.no_grad():  # start at the share of defective tokens, about 3 %
            last.bias.zero_()
            last.bias[0], last.bias[CLASSES] = 3.0, -3.0
        self.body = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.body(tokens.float())
        return out[..., :CLASSES], out[..., CLASSES], out[..., CLASSES + 1 :]


class _DenseTask:
    """What both steps share: the dense loss and the validation of the last tokens."""

    module: nn.Module

    def __init__(self, preset: Preset, device: torch.device, validation: int) -> None:
        self.device = device
        # Tokens without a defect outnumber the others; weigh them down.
        self.kind_weight = torch.tensor([0.3] + [1.0] * len(KINDS), device=device)
        self._validation = held_out(preset, validation)

    def _dense(self, heads: nn.Module, tokens: Tensor, batch: dict[str, Tensor]) -> Tensor:
        kind, share, figure = heads(tokens)
        kind_loss = F.cross_entropy(kind.flatten(0, 2), batch["kind"].flatten(), self.kind_weight)
        # What is missing can only be told by who knows where the part should be, and where it is.
        figure_loss = F.binary_cross_entropy_with_logits(figure, batch["figure"])
        return 0.5 * kind_loss + 2 * share_loss(share, batch["share"]) + 0.5 * figure_loss

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def _share_logits(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """AP ("score") and AUROC of the tokens' shares on pictures never trained on."""
        return share_metrics(self._validation, self._share_logits)


class EmbeddingTask(_DenseTask):
    """The convolutional patch embedding alone."""

    def __init__(self, preset: Preset, device: torch.device, validation: int) -> None:
        super().__init__(preset, device, validation)
        self.embedding = build_clip(preset.clip_name).visual.conv1
        self.head = DenseHead(preset.umci.visual_dim)
        self.module = nn.ModuleList([self.embedding, self.head]).to(device)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        batch = self._to_device(batch)
        return self._dense(self.head, self._tokens(batch["image"]), batch), {}

    def _tokens(self, image: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            tokens: Tensor = self.embedding(normalise(image.to(self.device)))
        return tokens.permute(0, 2, 3, 1)

    def _share_logits(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self._tokens(image))[1]
        return logits


class ClipTask(_DenseTask):
    """CLIP's loss plus the dense ones on a frozen embedding (see the module's text).

    `windows` a side: 2 for quarters of the picture, 1 for all of it.
    """

    def __init__(self, preset: Preset, device: torch.device, validation: int) -> None:
        super().__init__(preset, device, validation)
        self.taps = preset.features_list
        self.windows = 2
        self.clip: Any = build_clip(preset.clip_name)
        self.clip.visual.conv1.requires_grad_(False)
        for block in self.clip.visual.transformer.resblocks:
            for last in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        width = preset.umci.visual_dim
        self.heads = nn.ModuleList(DenseHead(width) for _ in self.taps)  # of pre-training only
        self.module = nn.ModuleDict({"clip": self.clip, "heads": self.heads}).to(device)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        batch = self._to_device(batch)
        taps = self._taps(batch["image"], self.windows)
        losses = [
            self._dense(head, tokens, batch) for head, tokens in zip(self.heads, taps, strict=True)
        ]
        dense = torch.stack(losses).mean()
        words = self._contrastive(taps[-1].float(), batch["tokens"])
        return dense + 0.3 * words, {"dense": dense.item(), "words": words.item()}

    def _taps(self, image: Tensor, windows: int) -> list[Tensor]:
        visual = self.clip.visual
        position = visual.positional_embedding
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                embedded = visual.conv1(normalise(image.to(self.device))).permute(0, 2, 3, 1)
            grid = embedded.shape[1]
            square = position[1:].unflatten(0, (grid, grid))[None]
            cut = _cut(square, windows)  # n,h,w,C
            part = torch.cat([position[:1].expand(len(cut), 1, -1), cut.flatten(1, 2)], dim=1)
            taps = run_blocks(
                visual, _cut(embedded, windows), part.repeat(len(embedded), 1, 1), self.taps
            )
        return [_join(tap, windows) for tap in taps]

    def _share_logits(self, image: Tensor) -> Tensor:
        logits: Tensor = self.heads[-1](self._taps(image, 1)[-1])[1]
        return logits

    def _contrastive(self, last: Tensor, tokens: Tensor) -> Tensor:
        clip, visual = self.clip, self.clip.visual
        image = F.normalize(visual.ln_post(last.mean(dim=(1, 2))) @ visual.proj, dim=-1)
        text = F.normalize(clip.encode_text(tokens).float(), dim=-1)
        logits = clip.logit_scale.exp().clamp(max=50) * image @ text.T
        # Pictures that share a caption are not each other's negatives.
        same = (tokens[:, None] == tokens[None]).all(dim=-1).float()
        target = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _cut(grid: Tensor, windows: int) -> Tensor:
    """[B,H,W,C] -> [B*windows*windows, H/windows, W/windows, C], an image's windows together."""
    rows = grid.unflatten(1, (windows, -1)).unflatten(3, (windows, -1))  # B,n,h,n,w,C
    cut: Tensor = rows.transpose(2, 3).flatten(0, 2)
    return cut


def _join(parts: Tensor, windows: int) -> Tensor:
    """The inverse of `_cut`."""
    rows = parts.unflatten(0, (-1, windows, windows)).transpose(2, 3)  # B,n,h,n,w,C
    joined: Tensor = rows.flatten(3, 4).flatten(1, 2)
    return joined


def held_out(preset: Preset, count: int) -> list[Sample]:
    """Pictures that no training sees."""
    return [sample_from_seed(VALIDATION_SEED + i, preset.clip_image_size) for i in range(count)]


def share_loss(logits: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of logits [B,h,w] with each token's defective share; defects weigh fivefold."""
    return F.binary_cross_entropy_with_logits(logits, share, 1 + 4 * share)


def share_metrics(samples: list[Sample], predict: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """ "score" (AP) and "auroc" of tokens: image uint8 [1,S,S,3] -> logits [1,h,w]. Nothing where
    no picture shows a defect."""
    maps, truth = [], []
    for sample in samples:
        maps.append(predict(torch.from_numpy(sample.image)[None])[0].float().cpu().numpy())
        truth.append(token_shares(sample.mask, maps[-1].shape[0]) > 0.4)
    if not any(mask.any() for mask in truth):
        return {}
    metrics = pixel_metrics(np.stack(maps), np.stack(truth))
    return {"score": metrics["ap"], "auroc": metrics["auroc"]}
