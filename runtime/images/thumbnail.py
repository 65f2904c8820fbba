"""Pictures and maps made small."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import ImageError
from clipsam.runtime.core.files import open_regular, sha256
from clipsam.runtime.images.headers import read_header
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import MAX_PIXELS, read_image


def shrink(array: cv2.typing.MatLike, side: int) -> cv2.typing.MatLike:
    """[H,W] or [H,W,C] with no side above `side` pixels, shape kept; never enlarged."""
    height, width = array.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return array
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(array, size, interpolation=cv2.INTER_AREA)


def shrink_map(scores: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """A score map [H,W] as `shrink` has it, a small defect in it as high as it was."""
    step = max(1, max(scores.shape) // side)
    if step > 1:  # the highest value of a block: a mean would hide it
        scores = np.asarray(cv2.dilate(scores, np.ones((step, step), np.uint8)), np.float32)
    return np.asarray(shrink(scores, side), np.float32)


def read_judged(path: Path | None, digest: str | None) -> Image | None:
    """The picture at `path` while it is the one with the sha256 `digest`, else None."""
    if path is None or digest is None:
        return None
    try:
        return read_image(path) if sha256(path) == digest else None
    except (ImageError, OSError, ValueError):
        return None


def read_map(path: Path | None) -> NDArray[np.float32] | None:
    """The score map [H,W] in [0,1] of a file, or None when there is none."""
    if path is None:
        return None
    try:
        with open_regular(path, 4 * MAX_PIXELS + (1 << 20)) as file:
            return decode_map(file.read())
    except (OSError, ValueError):
        return None


def decode_map(data: bytes) -> NDArray[np.float32] | None:
    """`read_map` of a file's content."""
    header = read_header(data)
    if header is None or header.width * header.height > MAX_PIXELS:
        return None
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if array is None or array.ndim != 2 or array.dtype not in (np.float32, np.uint8):
        return None
    if array.dtype == np.uint8:
        return np.asarray(array / np.float32(255), np.float32)
    return np.asarray(np.clip(np.nan_to_num(array), 0, 1), np.float32)
