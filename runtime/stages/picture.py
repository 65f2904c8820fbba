"""What can be said of a picture before anything is looked for in it: whether it shows a part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import cv2
import numpy as np

from clipsam.runtime.core.result import BLACK, BLURRED, BURNT_OUT, EMPTY, MISPLACED, OTHER
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.thumbnail import shrink

_SIDE = 256  # pixels a side that are looked at, about
_DARK, _BRIGHT, _FLAT = 12, 250, 0.5  # levels of 0..255; the last is a standard deviation
_ALL = 0.99  # of the pixels
_SHARP = 1024  # pixels a side, at most, that sharpness is read at
_COARSE = 64

# fact -> the reason when it is too low, and when it is too high ("": none)
FACTS = {
    "brightness": (BLACK, BURNT_OUT),  # mean gray, 0..255
    "contrast": (EMPTY, OTHER),  # standard deviation of the gray values
    "red": (OTHER, OTHER),  # mean of red minus green
    "blue": (OTHER, OTHER),  # mean of blue minus green
    "sharpness": (BLURRED, ""),  # log of the mean second derivative
    "x": (MISPLACED, MISPLACED),  # where the edges' centre lies, 0..1 of the width
    "y": (MISPLACED, MISPLACED),
    "distance": ("", OTHER),  # of the tokens from the reference parts', the median
}


def obvious_reasons(image: Image) -> tuple[str, ...]:
    """Why HxWx3 uint8 shows nothing that could be good, as far as that is the same for any product.

    Black: nearly every pixel is dark. Burnt out: nearly every pixel is white. Empty: all of it has
    one gray value, without even the noise of a camera. Few pixels are looked at: lamps and lens
    caps make no small differences.
    """
    step = max(1, max(image.shape[:2]) // _SIDE)
    gray = np.asarray(cv2.cvtColor(image[::step, ::step].copy(), cv2.COLOR_RGB2GRAY))
    if (gray <= _DARK).mean() > _ALL:
        return (BLACK,)
    if (gray >= _BRIGHT).mean() > _ALL:
        return (BURNT_OUT,)
    return (EMPTY,) if gray.std() < _FLAT else ()


def picture_facts(image: Image) -> dict[str, float]:
    """The facts of HxWx3 uint8 that good parts bound: `FACTS`, without the distance."""
    image = np.asarray(shrink(image, _SHARP), np.uint8)
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    red, green, blue = cv2.mean(image)[:3]
    mean, deviation = cv2.meanStdDev(gray)
    second = np.abs(cv2.Laplacian(gray, cv2.CV_32F, ksize=3))
    small = cv2.resize(gray, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA).astype(np.float32)
    edges = np.hypot(cv2.Sobel(small, cv2.CV_32F, 1, 0), cv2.Sobel(small, cv2.CV_32F, 0, 1))
    places, weight = (np.arange(_COARSE) + 0.5) / _COARSE, float(edges.sum()) + 1e-6
    return {
        "brightness": float(mean.item()),
        "contrast": float(deviation.item()),
        "red": red - green,
        "blue": blue - green,
        "sharpness": float(np.log(second.mean() + 0.1)),
        "x": float((edges.sum(axis=0) * places).sum() / weight),
        "y": float((edges.sum(axis=1) * places).sum() / weight),
    }


def comparable(reasons: Iterable[str]) -> bool:
    """Whether a picture with these reasons may still be compared with good parts: blur moves no
    token far, so a distance of a blurred picture is a defect's."""
    return set(reasons) <= {BLURRED}


def reasons_of(
    facts: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]
) -> tuple[str, ...]:
    """Why a picture of these facts may not be called good, each reason once."""
    found: list[str] = []
    for name, (low, high) in bounds.items():
        if name in facts and not low <= facts[name] <= high:
            found.append(FACTS[name][int(facts[name] > high)])
    return tuple(dict.fromkeys(filter(None, found)))
