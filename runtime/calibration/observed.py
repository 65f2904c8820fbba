"""What one look at a picture gives a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Observed:
    """One picture, looked at without SAM.

    Attributes:
      score: of the map alone.
      tokens: float16 [N,C].
      facts: `stages.picture.picture_facts` of it.
    """

    score: float
    tokens: NDArray[np.float16]
    facts: Mapping[str, float]
