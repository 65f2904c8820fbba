"""Focal and dice loss (Eq. 10, 11) and their weighted sum over stages (Eq. 12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def stage_weights(stages: int) -> tuple[float, ...]:
    """(0.1, 0.1, 0.1, 0.7) for the paper's four stages (Sec. 3.4); else 0.7 for the last too."""
    return (1.0,) if stages == 1 else (*([0.3 / (stages - 1)] * (stages - 1)), 0.7)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss (Eq. 10) of two-class logits [B,2,H,W] against a target [B,H,W] of 0 and 1.

    p_i is the probability given to the pixel's own class (paper: written for the abnormal class
    only; here both, as Lin et al. define it).
    """
    log_p = logits.log_softmax(dim=1)
    log_p_true = torch.where(target > 0.5, log_p[:, 1], log_p[:, 0])
    return (-((1 - log_p_true.exp()) ** gamma) * log_p_true).mean()


def dice_loss(probability: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice loss (Eq. 11) with squared denominators, over [B,H,W]; mean over the batch.

    The factor 1/N of Eq. 11 would make the loss constant, so it is read as a misprint, as the
    formula of Milletari et al. has none. `smooth` keeps an image without defects finite.
    """
    p, y = probability.flatten(1), target.flatten(1)
    overlap = 2 * (p * y).sum(dim=1) + smooth
    return (1 - overlap / ((p * p).sum(dim=1) + (y * y).sum(dim=1) + smooth)).mean()


def stage_loss(logits: Tensor, target: Tensor, focal_weight: float = 1.0) -> Tensor:
    """Focal plus dice of one stage: dice on both classes, so that good images teach too.

    `focal_weight` (paper: 1; SAM's recipe: 20): dice alone cares for the mask, not for the order of
    what lies below and above its edge, and is ten times as large as the focal loss.
    """
    probability = logits.softmax(dim=1)
    return (
        focal_weight * focal_loss(logits, target)
        + dice_loss(probability[:, 1], target)
        + dice_loss(probability[:, 0], 1 - target)
    )


def total_loss(
    stage_logits: Sequence[Tensor],
    target: Tensor,
    weights: Sequence[float] | None = None,
    focal_weight: float = 1.0,
) -> Tensor:
    """Eq. 12 over per-stage logits [B,2,S,S] and a target [B,S,S]; see `stage_loss`."""
    weights = stage_weights(len(stage_logits)) if weights is None else weights
    losses = [
        weight * stage_loss(logits, target, focal_weight)
        for weight, logits in zip(weights, stage_logits, strict=True)
    ]
    return torch.stack(losses).sum()


def binary_focal_dice(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Per-mask focal and dice loss of binary logits, both [N,H,W] -> ([N], [N]).

    SAM's own recipe (focal with gamma 2, weighted 20:1 by its caller), for pre-training.
    """
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    p_true = p * target + (1 - p) * (1 - target)
    focal = ((1 - p_true) ** 2 * cross).flatten(1).mean(dim=1)
    p, y = p.flatten(1), target.flatten(1)
    dice = 1 - (2 * (p * y).sum(dim=1) + 1) / (p.sum(dim=1) + y.sum(dim=1) + 1)
    return focal, dice
