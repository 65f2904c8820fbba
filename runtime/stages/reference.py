"""Good parts to compare with: how far a part's tokens are from all that good ones have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.float16]

_ROWS = 512  # tokens compared at a time


@dataclass(frozen=True, eq=False)
class Reference:
    """Tokens of good parts.

    Attributes:
      tokens: float16 [K,C], each of length 1.
      parts: int32 [K], the good part that each comes from.
      weight: what the largest distance of a part's tokens is multiplied by and added to its score;
        0 where that does not help.
    """

    tokens: Tokens
    parts: NDArray[np.int32]
    weight: float = 0.0

    def distance(self, tokens: Tokens, leave_out: int | None = None) -> tuple[float, float]:
        """Largest and median distance of tokens float16 [N,C] to the nearest here: 0 where alike.

        One minus the cosine. `leave_out` names a good part whose own tokens do not count.
        """
        known = self._known
        if leave_out is not None:
            known = known[self.parts != leave_out]
        far = np.concatenate(
            [
                1 - (tokens[start : start + _ROWS].astype(np.float32) @ known.T).max(axis=1)
                for start in range(0, len(tokens), _ROWS)
            ]
        )
        far = np.maximum(far, 0)
        return float(far.max()), float(np.median(far))

    @cached_property
    def _known(self) -> NDArray[np.float32]:
        return self.tokens.astype(np.float32)
