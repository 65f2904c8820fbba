"""The naming head in PyTorch, its weights file, and what a bundle gets of it.

`RegionHead` is `runtime.stages.naming.NamingHead` as it is trained; words lie where the text tower
says or, for `tiny`, where `WordEncoder` does, which is used when words are added, never on the box.
Without a trained head CLIP's own final norm and projection are one (`projection_head`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from clipsam.research.models.checkpoints import (
    CLIP_TENSORS,
    TINY_WEIGHTS,
    read_state,
    save_weights,
    tensors_digest,
)
from clipsam.research.models.defect_words import DEFAULT_WORDS, word_features
from clipsam.research.models.presets import Preset, build_clip
from clipsam.runtime.core.errors import OptionError, WeightsError
from clipsam.runtime.core.files import sha256
from clipsam.runtime.options import clean_words
from clipsam.runtime.stages.closeup import CHANNELS
from clipsam.runtime.stages.naming import PLACE, SHAPE, Layers, NamingHead

NAMING_FILE = "naming.safetensors"
_LEARNED = "words"  # in the metadata of the weights file
_HIDDEN, _POOLED = 128, 256
_CLOSEUP = (32, 32, 64, 64, 128, 128)  # channels of the convolutions
_ORIGIN = "the naming weights must be a naming.safetensors that `clipsam train-naming` wrote"
_PROJECTION_SCALE = 100.0  # where OpenAI's CLIP has its own
_NO_DEFECT_OF_A_NAME = ("object", "surface")


class RegionHead(nn.Module):
    """Regions [B] of n tokens each -> vectors of the text's space, of length 1."""

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.token = nn.ModuleList([nn.Linear(width + PLACE, _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)])
        self.closeup = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in pairwise((CHANNELS, *_CLOSEUP))
        )
        pooled = 2 * width + 3 * _HIDDEN + SHAPE + 2 * _CLOSEUP[-1]
        self.pooled = nn.ModuleList([nn.Linear(pooled, _POOLED), nn.Linear(_POOLED, text)])
        self.dropout = nn.Dropout(0.3)

    def forward(
        self,
        tokens: Tensor,
        inside: Tensor,
        around: Tensor,
        place: Tensor,
        shape: Tensor,
        shown: Tensor,
        *,
        blind: bool = False,
    ) -> Tensor:
        """tokens [B,n,C], inside and around bool [B,n] (neither: nothing there), place
        [B,n,PLACE], shape [B,SHAPE], shown [B,CHANNELS,SIDE,SIDE] -> [B,C_t]. `blind` to tokens,
        it is by shape and close-up alone."""
        x = tokens - tokens.mean(dim=-1, keepdim=True)
        x = x / (x.std(dim=-1, correction=0, keepdim=True) + 1e-6)
        seen = torch.cat([x, place], dim=-1)
        for layer in self.token:
            seen = F.relu(layer(seen))
        within = inside[..., None].float() / inside.sum(dim=1).clamp_min(1)[:, None, None]
        ring = around[..., None].float() / around.sum(dim=1).clamp_min(1)[:, None, None]
        pool = [
            (x * within).sum(dim=1),
            (x * ring).sum(dim=1),
            (seen * within).sum(dim=1),
            (seen * inside[..., None]).amax(dim=1),  # never below 0, as what it is the largest of
            (seen * ring).sum(dim=1),
        ]
        if blind:
            pool = [torch.zeros_like(part) for part in pool]
        pool.append(shape)
        for number, layer in enumerate(self.closeup):
            adds = layer.in_channels == layer.out_channels
            if number and not adds:
                shown = F.max_pool2d(shown, 2)
            convolved = F.relu(layer(shown))
            shown = shown + convolved if adds else convolved
        pool += [shown.mean(dim=(2, 3)), shown.amax(dim=(2, 3))]
        x = self.dropout(torch.cat(pool, dim=-1))
        x = self.dropout(F.relu(self.pooled[0](x)))
        return F.normalize(self.pooled[1](x), dim=-1)


class WordEncoder(nn.Module):
    """Words -> vectors of the regions' space, from the text tower's token embeddings alone.

    For `tiny`, whose text tower says the same of every defect (the cosine of "scratch" and "crack"
    is 1.00): it was trained on captions that pictures of 192 pixels hardly tell apart.
    """

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.token = nn.Sequential(
            nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN)
        )
        self.weight = nn.Linear(width, 1)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(_HIDDEN, text))

    def forward(self, embedded: Tensor, there: Tensor) -> Tensor:
        """Token embeddings [K,n,C] and which of them are there, bool [K,n] -> [K,C_t], of length
        1."""
        x = F.layer_norm(embedded, embedded.shape[-1:])
        weight = self.weight(x)[..., 0].masked_fill(~there, -torch.inf).softmax(dim=1)
        return F.normalize(self.out((weight[..., None] * self.token(x)).sum(dim=1)), dim=-1)


class Naming(nn.Module):
    """All of it: head, words, what is unknown, and the scale of the cosines.

    `embedding` is the width of the token embeddings that words are read from; None: the words are
    the text tower's own features.
    """

    margin: Tensor

    def __init__(self, width: int, text: int, embedding: int | None = None) -> None:
        super().__init__()
        self.head = RegionHead(width, text)
        self.words = None if embedding is None else WordEncoder(embedding, text)
        self.unknown = nn.Parameter(torch.randn(text) / text**0.5)
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.register_buffer("margin", torch.zeros(()))

    def numpy(self) -> NamingHead:
        """The head for the box."""

        def layers(modules: nn.ModuleList) -> Layers:
            linear = [m for m in modules if isinstance(m, nn.Linear)]
            return [(_array(m.weight.T), _array(m.bias)) for m in linear]

        closeup = [
            (_array(weight.permute(2, 3, 1, 0).flatten(0, 2)), _array(bias))
            for weight, bias in (layer.parameters() for layer in self.head.closeup)
        ]
        return NamingHead(
            layers(self.head.token),
            layers(self.head.pooled),
            _array(F.normalize(self.unknown, dim=0)),
            float(self.margin),
            float(self.log_scale.detach().exp()),
            closeup,
        )


@dataclass(frozen=True)
class WordSpace:
    """What names regions of a CLIP: the head for the box, and where its words lie."""

    head: NamingHead
    features: Callable[[list[str]], NDArray[np.float32]]  # words -> [K,C_t]
    digest: str  # of the weights
    learned: tuple[str, ...] = DEFAULT_WORDS  # the words that a bundle starts with


def new_naming(preset: Preset) -> Naming:
    """An untrained head of this preset."""
    embedding = build_clip("tiny").token_embedding.embedding_dim
    words = embedding if preset.clip_name == "tiny" else None
    return Naming(preset.umci.visual_dim, preset.umci.text_dim, words)


def embed_words(
    clip: Any, tokenizer: Callable[[list[str]], Tensor], words: list[str]
) -> tuple[Tensor, Tensor]:
    """Token embeddings [K,n,C] of words, without those of start and end, and which are there."""
    tokens = tokenizer(words)[:, 1:]
    there = torch.arange(tokens.shape[1]) < tokens.argmax(dim=1, keepdim=True)  # the end is largest
    most = int(there.sum(dim=1).max())
    return clip.token_embedding.weight.detach().float().cpu()[tokens[:, :most]], there[:, :most]


def save_naming(
    naming: Naming, path: Path, clip: Any, words: Sequence[str], facts: Mapping[str, str]
) -> None:
    """Write the weights file; it names the CLIP that it belongs to, and the words of the kinds that
    it learned."""
    metadata = {CLIP_TENSORS: tensors_digest(clip), _LEARNED: json.dumps(list(words)), **facts}
    save_weights(naming.state_dict(), path, "naming", metadata)


def word_space(
    preset: Preset,
    clip: Any,
    tokenizer: Callable[[list[str]], Tensor],
    path: Path | None = None,
    *,
    adapted: bool = False,
) -> WordSpace | None:
    """What names the regions of this CLIP: the head in `path`, for `tiny` the repository's, else
    CLIP's own projection. None where `tiny` has another CLIP than its head was trained on; one
    whose embedding was `adapted` from that CLIP keeps it.

    Raises WeightsError for a file that is no head, or one of another CLIP.
    """
    if path is None and preset.clip_name == "tiny":
        path = TINY_WEIGHTS / NAMING_FILE
        if not path.is_file() or not (adapted or _made_for(path, clip)):
            return None
    if path is None:
        return projection_head(clip, tokenizer)
    naming = load_naming(path, preset, None if adapted else clip)

    @torch.no_grad()
    def features(words: list[str]) -> NDArray[np.float32]:
        if naming.words is None:
            return _array(word_features(clip, tokenizer, words))
        return _array(naming.words(*embed_words(clip, tokenizer, words)))

    return WordSpace(naming.numpy(), features, sha256(path), _learned(path))


def load_naming(path: Path, preset: Preset, clip: Any | None) -> Naming:
    """The weights file of this CLIP's head (None: of any). Raises WeightsError."""
    state = read_state(path, _ORIGIN)
    if clip is not None and not _made_for(path, clip):
        raise WeightsError(
            f"{path} was trained on another CLIP than the one given: give the CLIP weights that it "
            "was trained on, or train it on these with `clipsam train-naming`."
        )
    naming = new_naming(preset)
    try:
        naming.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} holds no naming head of this preset: {_ORIGIN}.") from error
    return naming.eval()


def projection_head(clip: Any, tokenizer: Callable[[list[str]], Tensor]) -> WordSpace:
    """CLIP's own: the image tower's final norm and projection of every token, their mean under the
    region, against the words as the text tower has them; what is nearer to a part without a name
    is unknown. Nothing is trained."""
    visual = clip.visual
    weight, bias, projection = (
        tensor.detach().float().cpu() for tensor in (visual.ln_post.weight, visual.ln_post.bias,
                                                     visual.proj)
    )  # fmt: skip

    def features(words: list[str]) -> NDArray[np.float32]:
        return _array(word_features(clip, tokenizer, words))

    neutral = features(list(_NO_DEFECT_OF_A_NAME)).mean(axis=0)
    neutral /= np.linalg.norm(neutral)
    layer = (_array(weight[:, None] * projection), _array(bias @ projection))
    head = NamingHead([layer], [], neutral, 0.0, _PROJECTION_SCALE)
    return WordSpace(head, features, "clip")


def _made_for(path: Path, clip: Any) -> bool:
    said = _said(path)
    return said.get("clipsam") == "naming" and said.get(CLIP_TENSORS) == tensors_digest(clip)


def _learned(path: Path) -> tuple[str, ...]:
    """The words of the kinds that the file's head learned; it says none where they are the
    generator's alone."""
    try:
        words = json.loads(_said(path).get(_LEARNED, "[]"))
        return clean_words(words, "a word of the naming weights") or DEFAULT_WORDS
    except (ValueError, TypeError, OptionError) as error:
        raise WeightsError(f"{path} does not list its words: {_ORIGIN}.") from error


def _said(path: Path) -> dict[str, str]:
    """What the weights file says of itself."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} is truncated or no safetensors ({error}): {_ORIGIN}."
        ) from error


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
