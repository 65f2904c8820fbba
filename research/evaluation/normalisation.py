"""Eq. 9's normalisation in an evaluation: a fixed scale, each image's own, or the whole set's.

    fixed     clip((O_f + sum m s) / 4, 0, 1), as on the box
    image     min-max within each image; pooled over images, scores then mean different things
    dataset   min-max over all pixels of all images of the set

Min-max over a set is one rising straight line for every pixel, so it changes no ranking: the
figures are those of the fixed scale, but for what `fixed` cuts off at 1 (where boxes overlap). So
one pass is enough: the sums are counted as they are, and the line is drawn when all have been seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.result import Result

FIXED, IMAGE, DATASET = "fixed", "image", "dataset"
NORMS = (FIXED, IMAGE, DATASET)


def headroom(max_boxes: int) -> float:
    """By what the sums, in units of the fixed scale, are divided to stay within 0..1.

    With q boxes a pixel reaches at most q on that scale. A power of two: dividing by it loses
    nothing, so where nothing was cut off the figures are the fixed scale's to the last bit.
    """
    return 2.0 ** int(max_boxes - 1).bit_length()


def unclipped(result: Result, inspect: Callable[[str], Result]) -> NDArray[np.float32]:
    """(O_f + sum m s) / 4, float32 [H,W], of a result on the fixed scale, not cut off at 1.

    `inspect` inspects the same image with another norm; it is asked only where something was cut
    off: the map on the image's own scale still has it. (Where all pixels were, they stay at 1.)
    """
    final = result.score_map
    inside = final < 1
    if inside.all() or not inside.any():
        return final
    scaled = inspect(IMAGE).score_map  # (total - low) / (high - low)
    low = final.min()
    at = int(np.argmax(np.where(inside, final, -1)))  # the highest that was not cut off
    if final.flat[at] <= low:
        return final
    spread = (final.flat[at] - low) / scaled.flat[at]
    return np.where(inside, final, low + spread * scaled).astype(np.float32)
