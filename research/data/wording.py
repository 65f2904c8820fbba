"""Words that do not fit the picture: how a small model learns to listen to its text.

On procedural pictures "normal" and "abnormal" always come in the same columns, so that UMCI could
ignore what they say. A share of the training pictures therefore gets other words, and the target
that belongs to them:

- the two columns swapped: "abnormal" now asks for what is sound, so the target is inverted;
- an unrelated adjective in place of "damaged": nothing in the picture is meant, the target is 0.

The paper does not do this; `--steering 0` (the default) is its recipe.
"""

from __future__ import annotations

import numpy as np

PLAIN, SWAPPED = "", "swapped"
UNRELATED = (
    "green", "blue", "purple", "tall", "new", "quiet", "famous", "foreign", "heavy", "cheap",
    "modern", "Italian", "musical", "friendly", "digital", "sweet", "early", "frozen", "loud",
    "typical", "northern", "floating", "gentle", "secret", "hungry", "medical", "royal", "tropical",
    "invisible", "electric", "weekly", "blorf", "tazik", "quen", "mirado", "oplu",
)  # fmt: skip


def draw_wording(rng: np.random.Generator, share: float) -> str:
    """`PLAIN`, or for a share of the pictures `SWAPPED` or an unrelated adjective (as often)."""
    if rng.random() >= share:
        return PLAIN
    return SWAPPED if rng.random() < 0.5 else UNRELATED[int(rng.integers(len(UNRELATED)))]
