"""A part on its way through a line: what the source gave, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import ClipSAMError, ImageError
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.rough_map import Found, Looks
from clipsam.runtime.timing import Clock

Source: TypeAlias = Image | Path | str  # an HxWx3 uint8 RGB array, or a file to read
Item: TypeAlias = Source | tuple[Source, str]  # with a category of its own


@dataclass(frozen=True, eq=False)
class Inspected:
    """One item of the source, inspected.

    Attributes:
      item: what the source gave.
      image: HxWx3 uint8 RGB; None where it could not be read.
      outcome: the result, or the error that this image met.
    """

    item: Item
    image: Image | None
    outcome: Result | ClipSAMError

    def result(self) -> Result:
        """The result; raises the error (see `ClipSAM.inspect`) where there is none."""
        if isinstance(self.outcome, ClipSAMError):
            raise self.outcome
        return self.outcome


@dataclass(eq=False)
class Part:
    """An item on its way."""

    item: Item
    clock: Clock = field(default_factory=Clock)  # from when the source gave it
    category: str = ""
    text: NDArray[np.float32] | None = None  # L [C_t,2]
    image: Image | None = None
    looks: Looks | None = None  # CLIP's inputs
    found: Found | None = None  # CLIP's outputs
    outcome: Result | ClipSAMError | None = None

    def given_back(self) -> Item:
        """The item for another line, with the picture where the source may use it again."""
        source = self.item[0] if isinstance(self.item, tuple) else self.item
        if self.image is None or isinstance(source, str | Path):
            return self.item
        return (self.image, self.item[1]) if isinstance(self.item, tuple) else self.image


def too_large(item: Item) -> ImageError:
    """What is left of a MemoryError at a stage whose needs grow with the image."""
    source = item[0] if isinstance(item, tuple) else item
    what = source if isinstance(source, str | Path) else "the image"
    return ImageError(
        f"{what} does not fit into the memory that is free: cut it into tiles, or free some."
    )
