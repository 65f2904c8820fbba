"""Training of the naming head: regions against words, each step with other phrases for its kinds.

Beside the phrases of all kinds every region also meets words that mean nothing, and the vector for
"unknown", which what the map found wrongly is to be nearest to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from clipsam.research.models.defect_words import (
    KIND_WORDS,
    MEANINGLESS,
    KindWords,
    word_features,
)
from clipsam.research.models.naming import Naming, embed_words
from clipsam.research.training.naming_data import AROUND, FOUND, INSIDE, NOTHING, NamedRegion
from clipsam.runtime.core.errors import DatasetError
from clipsam.runtime.stages.closeup import network_input

_BLIND = 0.25  # of the steps, the first, without tokens: beside them close-ups are hardly learned
_NEGATIVES = 16  # words that mean nothing, of a step
_HELD_OUT = 20  # every so many-th picture calibrates
_KEPT = 0.95  # of the rightly found regions that "unknown" may not take


@dataclass(frozen=True)
class NamingOptions:
    """How long, and how."""

    steps: int = 8000
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0


class Phrases:
    """What the text side says of every phrase that training uses, and of what means nothing."""

    def __init__(
        self,
        clip: Any,
        tokenizer: Callable[[list[str]], Tensor],
        kinds: Sequence[KindWords] = KIND_WORDS,
    ) -> None:
        self._every = [[kind.word, *kind.learned] for kind in kinds]
        flat = [phrase for some in self._every for phrase in some] + list(MEANINGLESS)
        starts = np.cumsum([0, *map(len, self._every)])
        self._first, self._nothing = starts[:-1], np.arange(starts[-1], len(flat))
        self._embedded, self._there = embed_words(clip, tokenizer, flat)
        self._features = word_features(clip, tokenizer, flat).cpu()
        self._table = clip.token_embedding.weight.detach().float().cpu()

    def shown(self, naming: Naming) -> Tensor:
        """[K,C_t] of the word that is shown for every kind."""
        return self._say(naming, self._first)

    def draw(self, naming: Naming, rng: np.random.Generator) -> Tensor:
        """One phrase of every kind, every other time the word that is shown, and some that mean
        nothing: [K + n,C_t]."""
        rows = [
            start + (0 if rng.random() < 0.5 else int(rng.integers(len(every))))
            for start, every in zip(self._first, self._every, strict=True)
        ]
        nothing = rng.choice(self._nothing, _NEGATIVES, replace=False)
        said = self._say(naming, np.concatenate([rows, nothing]))
        if naming.words is None:
            return said
        # Any token means nothing, unless a phrase that was learned has it.
        tokens = torch.from_numpy(rng.integers(len(self._table), size=(_NEGATIVES, 2)))
        there = torch.from_numpy(rng.random((_NEGATIVES, 2)) < [1, 0.4])
        return torch.cat([said, naming.words(self._table[tokens], there)])

    def _say(self, naming: Naming, rows: NDArray[np.int64]) -> Tensor:
        if naming.words is None:
            return self._features[rows]
        said: Tensor = naming.words(self._embedded[rows], self._there[rows])
        return said


def train_naming(
    naming: Naming, regions: Sequence[NamedRegion], phrases: Phrases, options: NamingOptions
) -> dict[str, float]:
    """Train on 95 % of the pictures, calibrate on the rest; returns the figures of the latter.

    Raises DatasetError where the map finds too little in them to calibrate on.
    """
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    own = [r for r in regions if r.picture % _HELD_OUT]
    others = [r for r in regions if not r.picture % _HELD_OUT and r.source == FOUND]
    if not own or all(region.kind == NOTHING for region in others):
        raise DatasetError(
            f"the rough map finds no defect in the {_HELD_OUT}th of the pictures that calibrates "
            "what is unknown: give more images, or procedural pictures beside them (--pictures)."
        )
    chance = _chances(own)
    optimizer = torch.optim.AdamW(naming.parameters(), options.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, options.steps, pct_start=0.1
    )
    naming.train().to(memory_format=torch.channels_last)
    with tqdm(total=options.steps, desc="naming", unit="step", mininterval=2) as bar:
        for step in range(options.steps):
            chosen = rng.choice(len(own), options.batch_size, p=chance)
            batch = [own[i] for i in chosen]
            blind = step < _BLIND * options.steps
            logits = _logits(naming, batch, phrases.draw(naming, rng), rng, blind)
            kinds = torch.tensor([region.kind for region in batch])
            target = torch.where(kinds == NOTHING, logits.shape[1] - 1, kinds)
            loss = F.cross_entropy(logits, target, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(naming.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if step % 100 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    naming.eval()
    return _calibrate(naming, others, phrases)


def _chances(regions: Sequence[NamedRegion]) -> NDArray[np.float64]:
    """Rare kinds are drawn more often than they come, and what the map found as often as what was
    drawn."""
    kinds = np.array([region.kind for region in regions]) + 1
    found = np.array([region.source == FOUND for region in regions])
    weight = 1 / np.sqrt(np.bincount(kinds))[kinds]
    for part in (found, ~found):
        if part.any():
            weight[part] /= weight[part].sum()
    return np.asarray(weight / weight.sum(), np.float64)


def _logits(
    naming: Naming,
    batch: Sequence[NamedRegion],
    words: Tensor,
    rng: np.random.Generator,
    blind: bool,
) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        vectors = naming.head(*head_inputs(batch, rng), blind=blind).float()
    every = torch.cat([words, F.normalize(naming.unknown, dim=0)[None]])
    logits: Tensor = naming.log_scale.exp().clamp(max=50) * vectors @ every.T
    return logits


def head_inputs(
    batch: Sequence[NamedRegion], rng: np.random.Generator | None = None
) -> list[Tensor]:
    """The inputs of `RegionHead`; with `rng` some tokens of each, as seen from any side."""
    chosen = []
    for region in batch:
        inside = np.flatnonzero(region.look.inside)
        around = np.flatnonzero(~region.look.inside)
        if rng is not None:
            inside = rng.permutation(inside)[:INSIDE]
            around = rng.permutation(around)[:AROUND]
        chosen.append(np.concatenate([inside, around]))
    count, most = len(batch), max(map(len, chosen))
    width, place = batch[0].tokens.shape[1], batch[0].look.place.shape[1]
    tokens = np.zeros((count, most, width), np.float32)
    places = np.zeros((count, most, place), np.float32)
    inside = np.zeros((count, most), np.bool_)
    there = np.zeros((count, most), np.bool_)
    for i, (region, rows) in enumerate(zip(batch, chosen, strict=True)):
        n = len(rows)
        tokens[i, :n], places[i, :n] = region.tokens[rows], region.look.place[rows]
        inside[i, :n], there[i, :n] = region.look.inside[rows], True
        if rng is not None:
            places[i, :, 1:] *= rng.choice([-1, 1], 2)
    shapes = np.stack([region.look.shape for region in batch])
    shown = np.stack([region.look.shown for region in batch])
    if rng is not None:
        for i in range(count):
            turned = np.rot90(shown[i], int(rng.integers(4)))
            shown[i] = turned[:, ::-1] if rng.random() < 0.5 else turned
    closeups = network_input(shown).transpose(0, 3, 1, 2)
    arrays = (tokens, inside, there & ~inside, places, shapes, closeups)
    return [torch.from_numpy(array) for array in arrays]


@torch.no_grad()
def _calibrate(
    naming: Naming, regions: Sequence[NamedRegion], phrases: Phrases
) -> dict[str, float]:
    """Set the margin, so that "unknown" takes 5 % of the regions that are something, and the scale,
    so that probabilities are what they say."""
    words = phrases.shown(naming)
    vectors = torch.cat([naming.head(*head_inputs([region])) for region in regions])
    kinds = torch.tensor([region.kind for region in regions])
    known = kinds != NOTHING
    cosines = vectors @ words.T
    strange = vectors @ F.normalize(naming.unknown, dim=0)
    ahead = cosines.amax(dim=1) - strange
    naming.margin.fill_(float(torch.quantile(ahead[known], 1 - _KEPT)))
    cosines = torch.cat([cosines, (strange + naming.margin)[:, None]], dim=1)
    target = torch.where(known, kinds, len(words))
    scales = torch.linspace(2, 40, 77)
    losses = torch.stack([F.cross_entropy(scale * cosines, target) for scale in scales])
    naming.log_scale.data.fill_(float(scales[losses.argmin()].log()))
    return {
        "regions": float(known.sum()),
        "named_rightly": float((cosines.argmax(dim=1) == target)[known].float().mean()),
        "false_finds_unknown": float((cosines.argmax(dim=1) == target)[~known].float().mean()),
        "scale": float(naming.log_scale.exp()),
        "margin": float(naming.margin),
    }
