"""What a region is called: CLIP's tokens under it and around it, against the features of words.

A small head (`NamingHead`) turns a region into a vector of the text's space; its cosine with the
feature of every word, and with a vector that stands for "unknown", says how well each fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.ops.components import Component
from clipsam.runtime.stages.appearance import APPEARANCE, Cells, appearance
from clipsam.runtime.stages.closeup import close_up, convolve, network_input

F32 = NDArray[np.float32]
Layers = Sequence[tuple[F32, F32]]  # weights [inputs,outputs] and biases [outputs]
Kinds = Mapping[str, float]

UNKNOWN = "unknown"
RING = 3  # tokens around a region that are looked at, too
MOST_TOKENS = 384  # of a region; of more, evenly spread ones
PLACE = 3  # numbers that say where a token lies in its region
SHAPE = 5 + APPEARANCE  # numbers that say how large and slender a region is, and how it looks
_INSIDE = 0.1  # share of a token that the region covers, to be a token of it
_ALIKE = 0.9  # cosine of two words that mean the same


@dataclass(frozen=True, eq=False)
class RegionLook:
    """Which of a picture's tokens belong to a region, and the region's shape.

    Attributes:
      index: int [n], tokens within the region and around it, row by row.
      inside: bool [n], those within; at least one.
      place: float32 [n,PLACE]: the share that the region covers, and where the token lies along
        and across the region, in units of its length.
      shape: float32 [SHAPE]: logarithms of area, length, width to length and how full it is;
        whether it touches the picture's edge; `appearance`.
      shown: uint8 [SIDE,SIDE,PLANES], see `close_up`.
    """

    index: NDArray[np.intp]
    inside: NDArray[np.bool_]
    place: F32
    shape: F32
    shown: NDArray[np.uint8]


def look_at(mask: NDArray[np.bool_], cells: Cells) -> RegionLook:
    """The look of a region: `mask` [H,W] is of the image of which `cells` are what CLIP was shown.
    Raises ValueError for an empty mask."""
    size, grid = len(cells.picture), cells.grid
    cell = size // grid
    seen = cv2.resize(mask.astype(np.uint8) * 255, (size, size), interpolation=cv2.INTER_AREA)
    cover = seen.astype(np.float32) / np.float32(255)
    if cover.max() < 0.02:  # thinner than CLIP's input shows
        ys, xs = np.nonzero(mask)
        if not len(ys):
            raise ValueError("a region has pixels")
        cover[ys * size // mask.shape[0], xs * size // mask.shape[1]] = 1
    share = cover.reshape(grid, cell, grid, cell).mean(axis=(1, 3))
    inside = share > min(_INSIDE, float(share.max()) / 2)
    kernel = np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)
    index = np.flatnonzero(cv2.dilate(inside.astype(np.uint8), kernel))
    if len(index) > MOST_TOKENS:
        index = index[np.linspace(0, len(index) - 1, MOST_TOKENS).astype(np.intp)]
        if not inside.reshape(-1)[index].any():  # one of them at least
            index = np.union1d(index, [int(share.argmax())])
    centre, axes, lengths = _moments(cover)
    ys, xs = np.divmod(index, grid)
    at = (np.stack([xs, ys], axis=1) + 0.5) * cell - centre
    along = at @ axes / max(float(lengths[0]), 1.0)
    place = np.column_stack([share.reshape(-1)[index], np.clip(along / 4, -2, 2)])
    area = float(cover.sum())
    edge = max(cover[0].max(), cover[-1].max(), cover[:, 0].max(), cover[:, -1].max())
    shape = [
        np.log(area / size**2) / 4 + 1,
        np.log(lengths[0] / size) + 3,
        np.log(lengths[1] / lengths[0]) + 1,
        np.log(area / (4 * np.pi * lengths[0] * lengths[1])),
        float(edge > 0.5),
    ]
    within = inside.reshape(-1)[index]
    # As they are kept for training.
    place = place.astype(np.float16).astype(np.float32)
    looks = appearance(cells, index, within, place[:, 0])
    numbers = np.concatenate([np.array(shape, np.float32), looks])
    return RegionLook(index, within, place, numbers, close_up(cells.picture, cover))


def _moments(cover: F32) -> tuple[F32, F32, F32]:
    """Centre (x, y), axes [2,2] (columns, the longer first) and standard deviations along them, in
    pixels, of what is covered."""
    ys, xs = np.nonzero(cover > 0)
    weight = cover[ys, xs].astype(np.float64)
    at = np.stack([xs, ys], axis=1) + 0.5
    centre = weight @ at / weight.sum()
    spread = (at - centre).T * weight @ (at - centre) / weight.sum() + np.eye(2) / 12
    values, vectors = np.linalg.eigh(spread)
    lengths = np.sqrt(np.maximum(values[::-1], 1e-6))
    return centre.astype(np.float32), vectors[:, ::-1].astype(np.float32), lengths


@dataclass(frozen=True, eq=False)
class NamingHead:
    """From a region's tokens to a vector of the text's space: dense layers, on NumPy.

    A token is standardised, joined to its place where the head was trained with it, and goes
    through `token` (ReLU after every layer but the last of a head without `pooled`). The means
    within the region and around it, before and after these layers, and the maximum within it
    after them, joined to the region's shape and to what `closeup` makes of its pixels, go through
    `pooled` (ReLU between its layers). Without `pooled`, the mean within the region is the answer:
    so CLIP's own projection is a head, too.

    Attributes:
      unknown: float32 [C_t], what no word fits is near to.
      margin: added to its cosine.
      scale: of the cosines, before the softmax.
      closeup: see `convolve`; none: the head looks at no pixels.
    """

    token: Layers
    pooled: Layers
    unknown: F32
    margin: float
    scale: float
    closeup: Layers = ()

    def embed(self, tokens: NDArray[np.float16], look: RegionLook) -> F32:
        """A region's vector [C_t], of length 1; `tokens` are the picture's [N,C]."""
        x = tokens[look.index].astype(np.float32)
        x -= x.mean(axis=1, keepdims=True)
        x /= x.std(axis=1, keepdims=True) + np.float32(1e-6)
        if not self.pooled:
            vector = _dense(x, self.token, False)[look.inside].mean(axis=0)
        else:
            seen = _dense(np.concatenate([x, look.place], axis=1), self.token, True)
            inside, ring = look.inside, ~look.inside
            if not ring.any():  # the region is all there is
                x, seen = (np.vstack([array, np.zeros_like(array[:1])]) for array in (x, seen))
                inside, ring = np.append(inside, False), np.append(ring, True)
            pool = [
                x[inside].mean(axis=0),
                x[ring].mean(axis=0),
                seen[inside].mean(axis=0),
                seen[inside].max(axis=0),
                seen[ring].mean(axis=0),
                look.shape,
            ]
            if self.closeup:
                pool.append(convolve(network_input(look.shown[None])[0], self.closeup))
            vector = _dense(np.concatenate(pool)[None], self.pooled, False)[0]
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6), np.float32)

    def kinds(self, vector: F32, words: Sequence[str], features: F32) -> dict[str, float]:
        """Probability of every word, and of "unknown", most probable first.

        `vector` is `embed`'s; `features` [K,C_t] of the words, each of length 1.
        """
        logits = np.append(features @ vector, self.unknown @ vector + self.margin) * self.scale
        chance = np.exp(logits - logits.max())
        chance /= chance.sum()
        names = [*words, UNKNOWN]
        return {names[i]: float(chance[i]) for i in np.argsort(-chance, kind="stable")}


def _dense(x: F32, layers: Layers, relu_last: bool) -> F32:
    for number, (weight, bias) in enumerate(layers, start=1):
        x = x @ weight + bias
        if relu_last or number < len(layers):
            np.maximum(x, 0, out=x)
    return x


def component_mask(component: Component, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A component's pixels in its map [H,W]."""
    mask = np.zeros(shape[0] * shape[1], np.bool_)
    mask[component.pixels] = True
    return mask.reshape(shape[:2])


@dataclass(frozen=True, eq=False)
class Namer:
    """What names the regions of a bundle.

    Attributes:
      words: for regions.
      features: float32 [K,C_t] of them, each of length 1.
      head: see `NamingHead`.
      grid: tokens a side.
    """

    words: tuple[str, ...]
    features: F32
    head: NamingHead
    grid: int

    def kinds(
        self, tokens: NDArray[np.float16], cells: Cells, mask: NDArray[np.bool_]
    ) -> dict[str, float]:
        """Every word with its probability, most probable first, for the region that is `mask`
        [H,W] of an image; `cells` are what CLIP was shown of it, `tokens` [N,C] what CLIP said."""
        vector = self.head.embed(tokens, look_at(mask, cells))
        return self.head.kinds(vector, self.words, self.features)

    def alike(self, words: Sequence[str]) -> frozenset[str]:
        """These words, and those that mean the same: their features are nearly one."""
        rows = [self.words.index(word) for word in words if word in self.words]
        near = (self.features[rows] @ self.features.T > _ALIKE).any(axis=0)
        return frozenset(words) | {w for w, same in zip(self.words, near, strict=True) if same}

    def without(self, tokens: NDArray[np.float16], mask: NDArray[np.bool_]) -> NDArray[np.float16]:
        """The tokens that `mask` [H,W] does not touch; all of them where it touches all."""
        if not mask.any():
            return tokens
        shape = (self.grid, self.grid)
        share = cv2.resize(mask.astype(np.uint8) * 255, shape, interpolation=cv2.INTER_AREA)
        rest = tokens[share.reshape(-1) == 0]
        return rest if len(rest) else tokens
