"""The work between the engines, done plainly: what the fast code in `runtime/` has to equal.

Whole masks through two `cv2.resize` calls, OpenCV's own components, one component after the other
in full-size maps, and Pillow's resize as sums of integers. Nothing here calls the code it is
compared with; only the data types and options are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.result import Region
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.decision import DecisionOptions
from clipsam.runtime.stages.prompts import PromptOptions

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

# --- Eq. 8 and 9: masks and their weighted sum


def plain_upscale(logits: Map, geometry: Geometry) -> Map:
    """One mask's logits [h,w] at image size [H,W]: resized, cropped, resized."""
    size, (height, width) = geometry.sam_size, geometry.sam_shape
    square = cv2.resize(logits, (size, size), interpolation=cv2.INTER_LINEAR)
    valid = np.ascontiguousarray(square[:height, :width])
    shape = (geometry.width, geometry.height)
    return np.asarray(cv2.resize(valid, shape, interpolation=cv2.INTER_LINEAR), np.float32)


def plain_fuse(
    rough: Map,
    logits: NDArray[np.float32],
    scores: NDArray[np.float32],
    geometry: Geometry,
    weight: float = 1.0,
) -> Map:
    """O_f + sum of m x s x weight, mask after mask; logits [q,3,h,w], scores [q,3]."""
    total = np.array(rough, np.float32)
    for one, score in zip(logits.reshape(-1, *logits.shape[2:]), scores.ravel(), strict=True):
        mask = plain_upscale(one, geometry) > 0
        np.add(total, np.float32(float(score) * weight), out=total, where=mask)
    return total


def plain_fixed_scale(total: Map, masks_per_box: int, weight: float = 1.0) -> Map:
    return np.asarray(np.clip(total / np.float32(1 + weight * masks_per_box), 0, 1), np.float32)


# --- Eq. 7: components and prompts


@dataclass(frozen=True)
class PlainComponent:
    box: tuple[int, int, int, int]  # x_min, y_min, x_max, y_max, inclusive
    area: int
    centroid: tuple[float, float]
    evidence: float
    mask: Mask  # within its box

    @property
    def window(self) -> tuple[slice, slice]:
        x_min, y_min, x_max, y_max = self.box
        return slice(y_min, y_max + 1), slice(x_min, x_max + 1)


def plain_components(binary: Mask, weights: Map, min_area: int) -> list[PlainComponent]:
    """By `cv2.connectedComponentsWithStats`, largest evidence first."""
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(
        binary.view(np.uint8), connectivity=8
    )
    found = []
    for label in range(1, count):
        x, y, width, height, area = (int(v) for v in stats[label])
        if area >= min_area:
            window = slice(y, y + height), slice(x, x + width)
            mask = labels[window] == label
            evidence = float(weights[window][mask].sum(dtype=np.float64))
            centroid = (float(centroids[label, 0]), float(centroids[label, 1]))
            box = (x, y, x + width - 1, y + height - 1)
            found.append(PlainComponent(box, area, centroid, evidence, mask))
    return sorted(found, key=lambda c: (-c.evidence, c.box[1], c.box[0], c.box[3], c.box[2]))


def plain_level(values: Map, area: int) -> float:
    """The highest of the map's values at which a component of `area` pixels is left, by halving."""
    levels = np.unique(values)
    first, last = 0, len(levels)
    while last - first > 1:
        middle = (first + last) // 2
        mask = (values >= levels[middle]).view(np.uint8)
        stats = cv2.connectedComponentsWithStats(mask, connectivity=8)[2]
        if stats[1:, cv2.CC_STAT_AREA].max(initial=0) >= area:
            first = middle
        else:
            last = middle
    return float(levels[first])


def plain_prompts(
    rough: Map, options: PromptOptions
) -> tuple[float, NDArray[np.float32], NDArray[np.float32], list[PlainComponent]]:
    """The score, boxes [q,4], points [q,m,2] and all components."""
    smallest = max(1, round(options.min_area * rough.size))
    score = plain_level(rough, smallest)
    reach = min(options.threshold, options.deciding)
    components = [
        c
        for c in plain_components(rough.astype(np.float64) > reach, rough, smallest)
        if plain_level(np.where(c.mask, rough[c.window], -1), smallest) > options.deciding
    ]
    kept = components[: options.max_boxes]
    boxes = np.array([c.box for c in kept], np.float32).reshape(-1, 4)
    groups = [kept] * len(kept) if options.points == "shared" else [[c] for c in kept]
    drawn: dict[int, NDArray[np.float32]] = {}
    for group in groups:  # the shared group is drawn from once
        if id(group[0]) not in drawn:
            drawn[id(group[0])] = plain_draw(group, rough.shape[1], options)
    points = [drawn[id(group[0])] for group in groups]
    shaped = np.array(points, np.float32).reshape(-1, options.num_points, 2)
    return score, boxes, shaped, components


def plain_draw(
    components: Sequence[PlainComponent], width: int, options: PromptOptions
) -> NDArray[np.float32]:
    """The m pixels (x, y) of lowest rank: every pixel's SplitMix64 from the mixed seed."""
    xs, ys = [], []
    for component in components:
        y, x = np.nonzero(component.mask)
        xs.append(x + component.box[0])
        ys.append(y + component.box[1])
    x, y = np.concatenate(xs), np.concatenate(ys)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        start = _finalise(np.array(options.seed % 2**64, np.uint64) * golden)
        rank = _finalise(((y * width + x).astype(np.uint64) + start) * golden + golden)
    count = min(options.num_points, len(rank))
    lowest = np.argpartition(rank, count - 1)[:count]
    lowest = np.resize(lowest[np.argsort(rank[lowest])], options.num_points)
    return np.stack([x[lowest], y[lowest]], axis=1).astype(np.float32)


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


# --- the decision


def plain_decide(
    final: Map, components: Sequence[PlainComponent], options: DecisionOptions, *, refined: bool
) -> tuple[Mask, tuple[Region, ...]]:
    """The refined map's regions that meet a rough component, and components that meet none."""
    mask = np.zeros(final.shape, np.bool_)
    if refined:
        smallest = max(1, round(options.min_area * final.size))
        rough = np.zeros(final.shape, np.bool_)
        for component in components:
            rough[component.window] |= component.mask
        for region in plain_components(final > options.threshold, final, smallest):
            if (rough[region.window] & region.mask).any():
                mask[region.window] |= region.mask
    for component in components:
        if not mask[component.window][component.mask].any():
            mask[component.window] |= component.mask
    return mask, tuple(_plain_region(c, final) for c in plain_components(mask, final, 1))


def _plain_region(component: PlainComponent, final: Map) -> Region:
    x_min, y_min, x_max, y_max = component.box
    outlines, _ = cv2.findContours(
        component.mask.view(np.uint8),
        cv2.RETR_EXTERNAL,
        cv2.CHAIN_APPROX_SIMPLE,
        offset=(x_min, y_min),
    )
    outline = max(outlines, key=len).reshape(-1, 2)
    return Region(
        box=(x_min, y_min, x_max - x_min + 1, y_max - y_min + 1),
        area=component.area,
        centroid=component.centroid,
        contour=tuple((int(x), int(y)) for x, y in outline),
        score=float(final[component.window][component.mask].max()),
    )


# --- Pillow's resize


def plain_resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [H,W,3] -> [height,width,3] as Pillow 13 does it, tap after tap in integers."""
    lost_rows, lost_columns = image.shape[0] - height, image.shape[1] - width
    if lost_rows > max(0, 2 * lost_columns):
        image = _plain_rows(image, height)
    if image.shape[1] != width:
        columns = np.asarray(cv2.transpose(image), np.uint8).reshape(image.shape[1], -1, 3)
        columns = _plain_rows(columns, width)
        image = np.asarray(cv2.transpose(columns), np.uint8).reshape(-1, width, 3)
    if image.shape[0] != height:
        image = _plain_rows(image, height)
    return image


def _plain_rows(image: NDArray[np.uint8], new: int) -> NDArray[np.uint8]:
    index, weight = _plain_taps(image.shape[0], new)
    total = np.full((new, *image.shape[1:]), 1 << 21, np.int32)
    product = np.empty_like(total)
    for tap in range(index.shape[1]):
        np.multiply(image[index[:, tap]], weight[:, tap, None, None], out=product)
        total += product
    total >>= 22
    return np.clip(total, 0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _plain_taps(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """For each of `new` outputs: sources [new,k] and weights [new,k] in 22-bit fixed point."""
    scale = old / new
    support = max(scale, 1.0)
    count = int(np.ceil(support)) * 2 + 1
    index, weight = np.zeros((new, count), np.intp), np.zeros((new, count), np.int32)
    for out in range(new):
        centre = (out + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(old, int(centre + support + 0.5))
        distance = [abs((i - centre + 0.5) * (1.0 / support)) for i in range(first, last)]
        values = [max(0.0, 1.0 - d) for d in distance]
        total = sum(values)
        index[out, : last - first] = range(first, last)
        weight[out, : last - first] = [int(v / total * (1 << 22) + 0.5) for v in values]
    used = int((weight != 0).any(axis=0).nonzero()[0].max()) + 1
    return index[:, :used], weight[:, :used]
