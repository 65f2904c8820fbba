"""Where the part is in a picture of it: a model of the frame's border colours, no learning.

What lies along the border of the frame is taken for background; what differs from it and hangs
together is the part. A picture whose inside looks like its border shows a surface: then all of it
is the part.
"""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.runtime.planting.canvas import Mask
from clipsam.runtime.planting.textures import F32, U8, f32

SIDE = 192  # the picture's longer side while looking, pixels
_SAMPLES = 160  # colours of the border that a pixel is compared with
_TOUCHED = 0.1  # share of the border that the part may cover without being taken for background
_LEAST_DISTANCE = 7.0  # of a part's colour from the background's, in units of CIELAB
_SEPARATED = 0.55  # least share of the distances' variance that the two classes explain


def find_part(image: U8) -> Mask:
    """The part in a picture: uint8 RGB [H,W,3] -> bool [H,W], all True for a surface."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    small_size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA)
    found = _silhouette(_distance(np.asarray(small, np.uint8)))
    if found is None:
        return np.ones((height, width), np.bool_)
    full = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(full > 0.5, np.bool_)


def _ring(shape: tuple[int, ...]) -> Mask:
    wide = max(2, round(0.025 * max(shape)))
    ring = np.ones(shape[:2], np.bool_)
    ring[wide:-wide, wide:-wide] = False
    return ring


def _distance(small: U8) -> F32:
    """How far each pixel's colour is from the border's: [h,w], in units of CIELAB.

    Not from the nearest of the border's colours but from a number of them, so that a part which
    the frame cuts off does not explain itself away.
    """
    lab = f32(cv2.cvtColor(cv2.GaussianBlur(small, (0, 0), 1.0), cv2.COLOR_RGB2LAB))
    lab[..., 0] *= np.float32(100 / 255)
    border = lab[_ring(small.shape)]
    border = border[np.linspace(0, len(border) - 1, min(_SAMPLES, len(border))).astype(int)]
    nearest = max(0, int(_TOUCHED * len(border)) - 1)
    flat = lab.reshape(-1, 3)
    squares = (flat * flat).sum(1)[:, None] - 2 * flat @ border.T + (border * border).sum(1)
    kth = np.partition(squares, nearest, axis=1)[:, nearest]
    return f32(np.sqrt(np.maximum(kth, 0)).reshape(small.shape[:2]))


def _silhouette(distance: F32) -> Mask | None:
    """What stands out, without specks and small holes; None where nothing does."""
    ring = _ring(distance.shape)
    top = max(float(np.quantile(distance, 0.995)), 1e-3)
    levels = np.clip(distance * np.float32(255 / top), 0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    border = float(np.quantile(distance[ring], 0.85))
    level = max(float(otsu) * top / 255, _LEAST_DISTANCE, 1.3 * border)
    above = (distance > level).astype(np.uint8)
    above = np.asarray(cv2.morphologyEx(above, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))  # marks that touch the outline
    above = np.asarray(cv2.morphologyEx(above, cv2.MORPH_CLOSE, disc), np.uint8)
    part = _fill_holes(_components(above, ring))
    share = float(part.mean())
    if not 0.05 <= share <= 0.9 or float(part[ring].mean()) > 0.4:
        return None
    between = share * (1 - share) * (distance[part].mean() - distance[~part].mean()) ** 2
    return part if float(between) >= _SEPARATED * float(distance.var()) else None


def _components(above: U8, ring: Mask) -> Mask:
    """The components that may be parts: large, and not a strip along the frame."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=4)
    if count < 2:
        return np.zeros(above.shape, np.bool_)
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.float64)
    at_border = np.bincount(labels[ring].ravel(), minlength=count)[1:] / areas
    ranked = areas * (at_border < 0.35)
    kept = (ranked > 0.15 * max(ranked.max(), 1.0)) & (ranked >= 12)
    return np.asarray(np.concatenate([[False], kept])[labels], np.bool_)


def _fill_holes(part: Mask) -> Mask:
    """Without the holes that are small for a part: marks and chips, not the bore of a ring."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~part).astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    filled = areas < 0.04 * max(int(part.sum()), 1)
    filled[0] = False  # the part itself
    return np.asarray(part | filled[labels], np.bool_)
