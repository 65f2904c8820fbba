"""Where an image lies in SAM's square frame.

Coordinates are (x, y) in pixels of the image, the centre of the top left pixel being (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Geometry:
    """Where an image of `height` x `width` lies in SAM's square frame of side `sam_size`."""

    height: int
    width: int
    sam_size: int

    @property
    def sam_shape(self) -> tuple[int, int]:
        """(height, width) of the image in SAM's frame: longest side `sam_size`, rounded half up."""
        scale = self.sam_size / max(self.height, self.width)
        return int(self.height * scale + 0.5), int(self.width * scale + 0.5)

    def to_sam(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """(x, y) in image pixels [...,2] -> float32 (x, y) in SAM's frame."""
        height, width = self.sam_shape
        scale = np.array([width / self.width, height / self.height])
        return np.asarray(points * scale, np.float32)
