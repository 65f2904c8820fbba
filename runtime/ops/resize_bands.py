"""A resize as products with the bands of its matrix, for a device that multiplies matrices.

The matrix of a resize, [new,old], is nearly all zeros: an output is made of the few samples around
it. So neighbouring outputs are taken together, and each group is a small matrix times the samples
that the group is made of. That is the whole matrix's result with a thirtieth of its numbers, which
have to be brought to the device, and of its products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.ops.pillow_resize import pillow_taps

_GROUP = 32  # outputs of a group, about: more of them make the bands wide, fewer the products many
_CUBIC = -0.75  # OpenCV's parameter of cubic interpolation
_SHORT = 11  # bits of its weights for uint8

# For every output the samples it is made of, [new,k], and their weights; a weight may be 0.
Taps = tuple[NDArray[np.intp], NDArray[np.float32]]


@dataclass(frozen=True)
class Bands:
    """A resize along one axis: output [g,n] is the sum over k of weights [g,n,k] x sample
    index [g,k]."""

    index: NDArray[np.int32]  # [G,K]
    weights: NDArray[np.float32]  # [G,N,K]


def groups(size: int) -> tuple[int, int]:
    """(G, N): into how many groups of how many outputs a side of this size is cut."""
    fitting = [n for n in range(1, size + 1) if size % n == 0]
    each = min(fitting, key=lambda n: abs(math.log(n / _GROUP)))
    return size // each, each


def widest(old: int, size: int) -> int:
    """At least K of `bands` of any axis that shrinks from at most `old` samples to `size`, or to
    less where an image keeps its aspect: rounding then shrinks it by a little more."""
    _, each = groups(size)
    scale = max(1.0, (old / size) * (1 + 1 / each))
    return math.ceil((each + 2) * scale) + 3


def bands(taps: Taps, size: int) -> Bands:
    """The bands of `taps` for a side of `size` outputs; those beyond the taps' own are 0."""
    index, weight = taps
    count, each = groups(size)
    first = np.zeros(count, np.intp)
    reach = 1
    for group in range(math.ceil(len(index) / each)):
        rows = index[group * each : (group + 1) * each]
        first[group] = rows.min()
        reach = max(reach, int(rows.max()) + 1 - int(rows.min()))
    output = np.arange(len(index))
    weights = np.zeros((count, each, reach), np.float32)
    where = (output // each)[:, None], (output % each)[:, None], index - first[output // each, None]
    np.add.at(weights, where, weight)  # added: at an edge one sample stands for several
    most = int(index.max())
    samples = np.minimum(first[:, None] + np.arange(reach), most)
    return Bands(np.asarray(samples, np.int32), weights)


@lru_cache(maxsize=32)
def clip_bands(old: int, size: int) -> Bands:
    """One axis of `preprocess.clip_input`: OpenCV's area where it shrinks, cubic where it grows."""
    return bands(_area(old, size) if size < old else _cubic(old, size), size)


@lru_cache(maxsize=32)
def sam_bands(old: int, new: int, size: int) -> Bands:
    """One axis of `preprocess.sam_input`: Pillow's `new` samples, and zeros up to `size`."""
    return bands(pillow_taps(old, new), size)


def _area(old: int, new: int) -> Taps:
    """Every output is the mean of what it covers, of a sample at its edge only the part."""
    scale = old / new
    start = np.arange(new) * scale
    stop = np.minimum(start + scale, old)
    index = np.floor(start).astype(np.intp)[:, None] + np.arange(math.ceil(scale) + 1)
    covered = np.minimum(index + 1, stop[:, None]) - np.maximum(index, start[:, None])
    weight = np.maximum(covered, 0) / (stop - start)[:, None]
    return np.minimum(index, old - 1), np.asarray(weight, np.float32)


def _cubic(old: int, new: int) -> Taps:
    """Four samples around each output, the edge's repeated beyond it; weights as short as
    OpenCV's, which for an axis that stays as it is are 1 and zeros."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    index = np.floor(centre).astype(np.intp)
    x, a = centre - index, _CUBIC
    near, far = x + 1, 1 - x  # distances of the outer left and the inner right sample
    weight = np.stack(
        [
            ((a * near - 5 * a) * near + 8 * a) * near - 4 * a,
            ((a + 2) * x - (a + 3)) * x * x + 1,
            ((a + 2) * far - (a + 3)) * far * far + 1,
        ],
        axis=1,
    )
    weight = np.concatenate([weight, 1 - weight.sum(axis=1, keepdims=True)], axis=1)
    weight = np.rint(weight * (1 << _SHORT)) / (1 << _SHORT)
    taps = np.clip(index[:, None] + np.arange(-1, 3), 0, old - 1)
    return taps, np.asarray(weight, np.float32)
