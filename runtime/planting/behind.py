"""What lies behind a part: a guess from what is seen around it."""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.runtime.planting.canvas import Mask
from clipsam.runtime.planting.textures import F32, Rng, blur, f32


def behind(rng: Rng, image: F32, part: Mask) -> F32:
    """The picture without the part: float32 [S,S,C] in, the same out.

    The background is mirrored at the part's outline, so that it keeps its texture; where its mirror
    image lies in the part or out of the frame, its smoothed tone with its grain. Where nothing of
    it is seen at all, black.
    """
    known = ~part
    if not known.any():
        return np.zeros_like(image)
    size = image.shape[0]
    _, labels = cv2.distanceTransformWithLabels(
        part.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    seen = np.flatnonzero(known)
    pixel_of = np.zeros(int(labels.max()) + 1, np.int64)
    pixel_of[labels.ravel()[seen]] = seen
    hidden = np.flatnonzero(part)
    near = pixel_of[labels.ravel()[hidden]]
    row, column = 2 * (near // size) - hidden // size, 2 * (near % size) - hidden % size
    within = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    mirrored = np.where(within, row * size + column, 0)
    usable = within & known.ravel()[mirrored]

    weight = f32(known)
    smooth = blur(image * weight[..., None], size / 12)
    spread = blur(weight, size / 12)[..., None]
    mean = image[known].mean(axis=0)
    smooth = np.where(spread > 0.02, smooth / np.maximum(spread, np.float32(0.02)), mean)
    flat = image.reshape(size * size, -1)
    filled = flat.copy()
    anywhere = seen[rng.integers(len(seen), size=len(hidden))]
    smooth_flat = smooth.reshape(size * size, -1)
    grain = np.clip(flat[anywhere] - smooth_flat[anywhere], -0.04, 0.04)
    filled[hidden] = np.where(usable[:, None], flat[mirrored], smooth_flat[hidden] + grain)
    return f32(filled.reshape(image.shape))
