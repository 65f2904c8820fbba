"""Kinds of regions within an inspection: what is asked for, what regions are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.result import Region
from clipsam.runtime.ops.components import Component
from clipsam.runtime.stages.appearance import Cells
from clipsam.runtime.stages.decision import outlined
from clipsam.runtime.stages.naming import Kinds, Namer, component_mask
from clipsam.runtime.stages.prompts import PromptOptions, Prompts
from clipsam.runtime.stages.rough_map import Looks
from clipsam.runtime.stages.steering import Asked, Steered, steer

MOST_NAMED = 32  # regions of a part; the others have no name
Tokens = NDArray[np.float16]


@dataclass(frozen=True)
class KindOptions:
    """What names regions (None: nothing does), and which of them count (None: all).

    Every method does nothing where it is not asked to.
    """

    namer: Namer | None = None
    asked: Asked | None = None

    def steer(
        self,
        rough: NDArray[np.float32],
        gate: PromptOptions,
        tokens: Tokens | None,
        looks: Looks,
    ) -> tuple[Tokens | None, Steered | None]:
        """Take what is not asked for out of the map [H,W], in place. Returns the tokens [n,C] of
        the rest of [N,C], and what was found. `looks` are what CLIP was shown."""
        if self.asked is None or self.namer is None or tokens is None:
            return tokens, None
        found = steer(rough, gate, self.asked, _naming(self.namer, tokens, looks, rough.shape))
        return self.namer.without(tokens, found.mask(rough.shape)), found

    def of(
        self,
        prompts: Prompts,
        tokens: Tokens | None,
        looks: Looks,
        shape: tuple[int, ...],
        steered: Steered | None,
    ) -> list[Kinds]:
        """Of the first components in a map [H,W]: what they were called when they were kept, else
        what their tokens [N,C] say."""
        if self.namer is None or tokens is None:
            return []
        name = _naming(self.namer, tokens, looks, shape)
        kinds: list[Kinds] = []
        for component in prompts.components[:MOST_NAMED]:
            kept = None if steered is None else steered.of(component)
            kinds.append(kept or name(component))
        return kinds


def _naming(
    namer: Namer, tokens: Tokens, looks: Looks, shape: tuple[int, ...]
) -> Callable[[Component], Kinds]:
    """What calls a component of a map [H,W] by its kinds. Of a part without any, the picture is
    not looked at."""

    @cache
    def cells() -> Cells:
        return Cells.of(looks.picture, namer.grid)

    return lambda component: namer.kinds(tokens, cells(), component_mask(component, shape))


def ignored_regions(steered: Steered | None, limit: float, most: float) -> tuple[Region, ...]:
    """What was taken out of the rough map and would have been found above this limit of it.

    `most` is what the final map's scale divides by.
    """
    if steered is None:
        return ()
    return tuple(
        outlined(named.component, min(1.0, named.level / most), named.kinds)
        for named in steered.aside
        if named.level > limit
    )
