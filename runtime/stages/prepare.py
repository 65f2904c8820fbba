"""CLIP's and SAM's inputs made on the device, from a picture that was brought there once.

The graph `prepare` does both resizes as products with matrices that are made here, for every size
of picture once. Of `preprocess.clip_input` and `sam_input` its pixels differ by 1 grey level at
most, and few do; docs/gpu.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Array, DeviceArray, Session
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.resize_bands import clip_bands, sam_bands

# Pixels a side of a picture. An engine holds memory for the largest it takes; a larger picture is
# resized on the host.
LONGEST = 4096


@dataclass(frozen=True)
class Prepared:
    """The inputs of one picture, left on the device where its sessions can use them there."""

    clip: Array | DeviceArray  # uint8 [1,S,S,3], as `clip_input`
    sam: Array | DeviceArray  # uint8 [1,D,D,3], as `sam_input`


class Preparer:
    """The graph `prepare`, opened, and the two that its pictures are for."""

    def __init__(self, session: Session, clip_umci: Session, sam_encoder: Session) -> None:
        self.session, self._clip_umci, self._sam_encoder = session, clip_umci, sam_encoder
        self._clip_size = int(session.outputs["clip"].shape[1])
        self._sam_size = int(session.outputs["sam"].shape[1])

    def takes(self, image: Image) -> bool:
        """Whether the picture is not too large, nor so thin that SAM's would have no pixels."""
        height, width = image.shape[:2]
        fits = max(height, width) <= LONGEST
        return bool(fits and min(Geometry(height, width, self._sam_size).sam_shape) > 0)

    def __call__(self, image: Image) -> Prepared:
        """The inputs of a picture HxWx3 uint8 RGB that it `takes`; raises SessionError."""
        height, width = image.shape[:2]
        feeds = {"image": image, **matrices(height, width, self._clip_size, self._sam_size)}
        run = self.session.keep if self.session.keeps else self.session.run
        made: Mapping[str, Array | DeviceArray] = run(feeds)
        return Prepared(
            self._for(self._clip_umci, made["clip"]), self._for(self._sam_encoder, made["sam"])
        )

    def _for(self, session: Session, array: Array | DeviceArray) -> Array | DeviceArray:
        """The array where `session` can use it."""
        shared = session.keeps and session.provider == self.session.provider
        return array if shared else on_host(array)


@lru_cache(maxsize=8)
def matrices(
    height: int, width: int, clip_size: int, sam_size: int
) -> dict[str, NDArray[np.int32] | NDArray[np.float32]]:
    """What the graph is fed beside a picture of this size: of every resize and axis which samples
    a group of outputs is made of, int32 [G,K], and their weights, float32 [G,N,K]."""
    rows, columns = Geometry(height, width, sam_size).sam_shape
    found = {
        "clip_columns": clip_bands(width, clip_size),
        "clip_rows": clip_bands(height, clip_size),
        "sam_columns": sam_bands(width, columns, sam_size),
        "sam_rows": sam_bands(height, rows, sam_size),
    }
    return {
        name: array
        for axis, bands in found.items()
        for name, array in ((axis, bands.index), (f"{axis}_weights", bands.weights))
    }


def on_host(array: Array | DeviceArray) -> Array:
    """The array, copied from the device if it is there."""
    return array.fetch() if isinstance(array, DeviceArray) else array
