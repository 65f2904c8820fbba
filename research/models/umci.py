"""UMCI: the Unified Multi-scale Cross-modal Interaction module (Sec. 3.2, appendix B).

One `UMCI` turns the patch tokens of one CLIP stage and the text features of one category into two
logits a patch, (normal, abnormal). `UMCIStages` holds one per stage, brings their logits to image
size and averages the probabilities (the text below Eq. 6).

Symbols are the paper's: P patch tokens, L text features, P_hat the tokens projected to the text's
width C_t, v visual features, t text features, M what a path returns. Shapes are given as comments.

Every ablation of tables 2 and 3 is a field of `UMCIConfig`, not another class: `paths=("strip",)`,
`paths=("scale",)`, `hidden_dim`, `pool_sizes`. ("w/o UMCI" puts
`clip.PatchTextSimilarity` in its place.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATHS = ("strip", "scale")


@dataclass(frozen=True)
class UMCIConfig:
    """Sizes and ablations of UMCI. The defaults are the paper's, for CLIP ViT-L-14-336."""

    visual_dim: int = 1024  # C, width of CLIP's image tower
    text_dim: int = 768  # C_t, width of CLIP's joint embedding
    hidden_dim: int = 384  # c_h (table 3)
    pool_sizes: tuple[int, ...] = (3, 9)  # s_1, s_2 of the scale path (table 3)
    paths: tuple[str, ...] = PATHS  # which paths run (table 2)
    stages: int = 4  # how many CLIP stages are tapped

    def __post_init__(self) -> None:
        if not self.paths or any(path not in PATHS for path in self.paths):
            raise ValueError(f"paths={self.paths!r}: name one or both of {PATHS}.")
        for name in ("visual_dim", "text_dim", "hidden_dim", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1.")

    def to_json(self) -> str:
        """One line of JSON; kept in the weights file so that it describes itself."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> UMCIConfig:
        """Inverse of `to_json`. Raises ValueError on unknown fields or bad values."""
        values: dict[str, Any] = json.loads(text)
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown UMCI settings {sorted(unknown)}")
        for name in ("pool_sizes", "paths"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, one head (Eq. 13). [B,N,c], [B,M,c], [B,M,c] -> [B,N,c]."""
    weights = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    attended: Tensor = weights.softmax(dim=-1) @ value
    return attended


class _TextConv(nn.Module):
    """A 1x1 convolution over the two text features: [B,C_t,2] -> [B,2,c_h].

    Its bias is a column's own. With a shared bias all of UMCI treats the two columns alike (every
    attention over them is a symmetric sum), so that swapping "normal" and "abnormal" would change
    nothing at all; tests/research/models/test_umci.py holds this.
    """

    def __init__(self, config: UMCIConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(config.text_dim, config.hidden_dim, 1, bias=False)
        self.bias = nn.Parameter(torch.randn(2, config.hidden_dim) * config.text_dim**-0.5)

    def forward(self, text: Tensor) -> Tensor:
        projected: Tensor = self.conv(text).transpose(1, 2) + self.bias
        return projected


class StripInteraction(nn.Module):
    """Two-step attention between the text and the rows (or columns) of the grid (Eq. 1, 14).

    Paper: the GRU's wiring is unspecified; here one `GRUCell` step whose input is what the text
    saw in the strip and whose state is the text feature itself.
    """

    def __init__(self, config: UMCIConfig) -> None:
        super().__init__()
        self.visual = nn.Conv1d(config.text_dim, config.hidden_dim, 3, padding=1)
        self.text_1 = _TextConv(config)
        self.text_2 = _TextConv(config)
        self.gru = nn.GRUCell(config.hidden_dim, config.hidden_dim)

    def forward(self, strip: Tensor, text: Tensor) -> Tensor:
        """[B,C_t,N], [B,C_t,2] -> M [B,N,c_h] with unit-length channels."""
        v = self.visual(strip).transpose(1, 2)  # B,N,c_h
        t_1, t_2 = self.text_1(text), self.text_2(text)  # B,2,c_h
        seen = attention(t_1, v, v)
        t_new = self.gru(seen.flatten(0, 1), t_1.flatten(0, 1)).view_as(t_1)
        return F.normalize(attention(v, t_new, t_2) + v, dim=-1)


class StripPath(nn.Module):
    """Rows and columns of the grid, each in dialogue with the text (Eq. 1, 2; algorithm 1)."""

    def __init__(self, config: UMCIConfig) -> None:
        super().__init__()
        self.rows = StripInteraction(config)
        self.columns = StripInteraction(config)
        self.merge = nn.Conv2d(config.hidden_dim, config.hidden_dim, 3, padding=1)

    def forward(self, p_hat: Tensor, text: Tensor) -> Tensor:
        """[B,C_t,H,W], [B,C_t,2] -> [B,c_h,H,W]."""
        m_row = self.rows(p_hat.mean(dim=3), text)  # B,H,c_h
        m_col = self.columns(p_hat.mean(dim=2), text)  # B,W,c_h
        # Bilinear expansion of a strip across the grid is a repetition, so adding broadcasts.
        both = m_row.transpose(1, 2).unsqueeze(3) + m_col.transpose(1, 2).unsqueeze(2)
        merged: Tensor = self.merge(both)
        return merged


def pooling_matrix(length: int, size: int) -> Tensor:
    """[ceil(length/size), length]: averages windows of `size`, the last over what is left.

    Pooling with a constant matrix covers the whole grid (24 is not a multiple of 9) without the
    ceil-mode pooling operator, which engines implement differently.
    """
    windows = torch.arange(length) // size  # window of each position
    # The count from the shape, not from the tensor: the exporter needs it while tracing.
    member = (windows[None, :] == torch.arange((length - 1) // size + 1)[:, None]).float()
    return member / member.sum(dim=1, keepdim=True)


class ScaleInteraction(nn.Module):
    """The grid pooled s x s, each cell asking the text what it is (Eq. 3, 15; algorithm 2)."""

    def __init__(self, config: UMCIConfig, pool_size: int) -> None:
        super().__init__()
        self.pool_size = pool_size
        self.visual = nn.Conv2d(config.text_dim, config.hidden_dim, 3, padding=1)
        self.text_key = _TextConv(config)
        self.text_value = _TextConv(config)

    def forward(self, p_hat: Tensor, text: Tensor) -> Tensor:
        """[B,C_t,H,W], [B,C_t,2] -> M [B,c_h,H,W], resized back to the grid."""
        height, width = p_hat.shape[2:]
        pool_h = pooling_matrix(height, self.pool_size).to(p_hat)
        pool_w = pooling_matrix(width, self.pool_size).to(p_hat)
        pooled = pool_h @ p_hat @ pool_w.T  # B,C_t,h,w
        features = self.visual(pooled)
        grid_h, grid_w = features.shape[2:]
        v = features.flatten(2).transpose(1, 2)  # B,hw,c_h
        v_att = attention(v, self.text_key(text), self.text_value(text))
        m = F.normalize(v_att + v, dim=-1).transpose(1, 2).unflatten(2, (grid_h, grid_w))
        return F.interpolate(m, size=(height, width), mode="bilinear", align_corners=False)


class ScalePath(nn.Module):
    """The grid at several scales, added and convolved (Eq. 3, 4; algorithm 2)."""

    def __init__(self, config: UMCIConfig) -> None:
        super().__init__()
        self.scales = nn.ModuleList(ScaleInteraction(config, s) for s in config.pool_sizes)
        self.merge = nn.Conv2d(config.hidden_dim, config.hidden_dim, 3, padding=1)

    def forward(self, p_hat: Tensor, text: Tensor) -> Tensor:
        """[B,C_t,H,W], [B,C_t,2] -> [B,c_h,H,W]."""
        first, *others = (scale(p_hat, text) for scale in self.scales)
        merged: Tensor = self.merge(sum(others, start=first))
        return merged


class UMCI(nn.Module):
    """One stage: patch tokens and text to two logits a patch (Eq. 1 to 6)."""

    def __init__(self, config: UMCIConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.visual_dim, config.text_dim)
        self.paths = nn.ModuleDict(
            {name: {"strip": StripPath, "scale": ScalePath}[name](config) for name in config.paths}
        )
        self.original = nn.Conv2d(config.text_dim, config.hidden_dim, 3, padding=1)
        self.fuse = nn.Conv2d(
            config.hidden_dim * (1 + len(config.paths)), config.text_dim, 3, padding=1
        )
        # Paper: "a Multi-Layer Perceptron"; here one hidden layer of c_h.
        self.head = nn.Sequential(
            nn.Linear(config.text_dim, config.hidden_dim),
            nn.ReLU(),
            nn.Linear(config.hidden_dim, 2),
        )

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Patch tokens P [B,H,W,C] and text features L [B,C_t,2] -> logits O [B,2,H,W]."""
        p_hat = self.project(tokens).permute(0, 3, 1, 2)  # B,C_t,H,W
        parts = [self.original(p_hat), *(path(p_hat, text) for path in self.paths.values())]
        m_all = self.fuse(torch.cat(parts, dim=1))  # Eq. 5
        logits: Tensor = self.head(F.relu(m_all + p_hat).permute(0, 2, 3, 1))  # Eq. 6
        return logits.permute(0, 3, 1, 2)


class UMCIStages(nn.Module):
    """One independent `UMCI` per CLIP stage, and the mean of their probabilities."""

    def __init__(self, config: UMCIConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(UMCI(config) for _ in range(config.stages))

    def forward(self, taps: Sequence[Tensor], text: Tensor, size: int) -> list[Tensor]:
        """Taps (one [B,H,W,C] a stage) and text [B,C_t,2] -> per stage logits [B,2,size,size]."""
        return [
            to_image_size(stage(tokens, text), size)
            for stage, tokens in zip(self.stages, taps, strict=True)
        ]

    def rough_map(self, taps: Sequence[Tensor], text: Tensor, size: int) -> Tensor:
        """The rough anomaly map O_f [B,size,size]: mean over stages of P(abnormal)."""
        stages = zip(self.stages, taps, strict=True)
        return _mean(to_image_size(evidence(stage(tokens, text)), size) for stage, tokens in stages)


def to_image_size(logits: Tensor, size: int) -> Tensor:
    """[B,2,H,W] -> [B,2,size,size], bilinear with half-pixel centres, as OpenCV resizes."""
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)


def evidence(logits: Tensor) -> Tensor:
    """[B,2,H,W] (normal, abnormal) -> [B,1,H,W], of which P(abnormal) is the sigmoid.

    That is the softmax of two classes, and several times as fast. Resizing is linear, so this may
    come before it.
    """
    return logits[:, 1:] - logits[:, :1]


def mean_abnormal(stage_logits: Iterable[Tensor]) -> Tensor:
    """Per stage logits [B,2,S,S] -> O_f [B,S,S], the mean probability of "abnormal"."""
    return _mean(map(evidence, stage_logits))


def _mean(stages: Iterable[Tensor]) -> Tensor:
    return torch.cat([stage.sigmoid() for stage in stages], dim=1).mean(dim=1)
