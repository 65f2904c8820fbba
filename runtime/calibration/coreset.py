"""Few tokens that stand for many: each next one is the farthest from all that are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipsam.runtime.stages.reference import Reference, Tokens

MOST = 2048  # tokens that are kept: what a part costs grows with them
_CANDIDATES = 20_000


def make_reference(parts: Sequence[Tokens], seed: int = 0, most: int = MOST) -> Reference:
    """At most `most` tokens of several good parts, [N,C] each (greedy k-centre)."""
    tokens = np.concatenate(parts)
    owner = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    rng = np.random.default_rng(seed)
    if len(tokens) > _CANDIDATES:
        drawn = np.sort(rng.choice(len(tokens), _CANDIDATES, replace=False))
        tokens, owner = tokens[drawn], owner[drawn]
    if len(tokens) <= most:
        return Reference(tokens, owner)
    values = tokens.astype(np.float32)
    chosen = [int(rng.integers(len(values)))]
    nearest = values @ values[chosen[0]]  # the cosine with the nearest that is chosen
    while len(chosen) < most:
        chosen.append(int(nearest.argmin()))
        np.maximum(nearest, values @ values[chosen[-1]], out=nearest)
    return Reference(tokens[chosen], owner[chosen])
