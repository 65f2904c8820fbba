"""WinCLIP's compositional prompt ensemble (appendix A): the text features L of a category."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NORMAL_STATES = (
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
    "{} without damage",
)  # fmt: skip
ABNORMAL_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = tuple(
    template.format(article=article)
    for template in (
        "a cropped photo of {article} {{}}.",
        "a close-up photo of {article} {{}}.",
        "a bright photo of {article} {{}}.",
        "a dark photo of {article} {{}}.",
        "a jpeg corrupted photo of {article} {{}}.",
        "a blurry photo of {article} {{}}.",
        "a photo of {article} {{}}.",
        "a photo of {article} small {{}}.",
        "a photo of {article} large {{}}.",
        "a photo of {article} {{}} for visual inspection.",
        "a photo of {article} {{}} for anomaly detection.",
    )
    for article in ("a", "the")
)

# The generic word comes first: it is what an unknown product is called (appendix A).
DEFAULT_CATEGORIES = (
    "object",
    # MVTec AD
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal nut", "pill",
    "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
    # VisA
    "candle", "capsules", "cashew", "chewing gum", "fryum", "macaroni", "printed circuit board",
    "pipe fryum",
    # MTD, KSDD2 and other surfaces
    "magnetic tile", "metal surface", "steel", "steel surface", "asphalt", "concrete", "fabric",
    "cookie", "plastic part", "metal part", "surface",
)  # fmt: skip


def sentences(category: str, states: Sequence[str]) -> list[str]:
    """Every of the 22 templates with every state ("damaged {}") of the category."""
    return [t.format(s.format(category)) for s in states for t in TEMPLATES]


def encode_sentences(clip: Any, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text` [N,77] -> [N,C_t], without the padding behind the sentences.

    Attention looks back only, so nothing behind a sentence's end reaches its embedding; these
    sentences fill a quarter of the context.
    """
    length = int((tokens != 0).sum(dim=1).max())
    tokens = tokens[:, :length]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    ends = tokens.argmax(dim=1)  # the end token has the largest number
    embeddings: Tensor = x[torch.arange(len(x), device=x.device), ends] @ clip.text_projection
    return embeddings


@torch.no_grad()
def state_feature(
    clip: Any,
    tokenizer: Callable[[list[str]], Tensor],
    category: str,
    states: Sequence[str],
) -> Tensor:
    """[C_t]: each sentence's embedding normalised, their mean normalised again."""
    tokens = tokenizer(sentences(category, states)).to(clip.logit_scale.device)
    embeddings = F.normalize(encode_sentences(clip, tokens).float(), dim=-1)
    return F.normalize(embeddings.mean(dim=0), dim=0)


def text_features(clip: Any, tokenizer: Callable[[list[str]], Tensor], category: str) -> Tensor:
    """L in R^{C_t x 2} of one category, column 0 normal, column 1 abnormal."""
    columns = [
        state_feature(clip, tokenizer, category, states)
        for states in (NORMAL_STATES, ABNORMAL_STATES)
    ]
    return torch.stack(columns, dim=1)
