"""From the rough map to its score and to SAM's prompts: components, boxes, points (Eq. 7).

The score of a part is the highest level at which the rough map still has a component of `min_area`.
So `score > limit` says, of any limit, that a component of that size rises above it; with Eq. 7's
threshold for the limit it is the paper's gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.ops.components import Component, find_components, pixel_area
from clipsam.runtime.ops.level import below, component_level

# SAM's labels of a prompt's points.
FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 1, 2, 3

MOST_LIMIT = 100.0  # of the score, which a distance may raise above the map's 1

_DRAWN = 1 << 14  # pixels ranked at a time: what a core's cache holds


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are made; part of the bundle's manifest."""

    # Eq. 7; table 3. How far a defect reaches: the limit says whether it is one.
    threshold: float = 0.47
    points: str = "shared"  # "shared": every box gets the same m points (the paper);
    #                         "per_region": each box gets m points of its own component
    num_points: int = 5  # m (paper: unspecified)
    max_boxes: int = 16  # at most q_max components, largest evidence first
    min_area: float = 1e-4  # of the image's area: the smallest component that counts
    limit: float = 0.0  # a part is anomalous whose score is above it; 0: `threshold` (the paper)
    seed: int = 0  # of the points' draw

    def __post_init__(self) -> None:
        if self.points not in ("shared", "per_region"):
            raise ValueError(f"points={self.points!r} must be 'shared' or 'per_region'")
        if not 0 < self.threshold < 1 or self.num_points < 1 or self.max_boxes < 1:
            raise ValueError("threshold must lie in (0,1), num_points and max_boxes be positive")
        if not 0 <= self.min_area < 1 or not 0 <= self.limit <= MOST_LIMIT:
            raise ValueError(f"min_area must lie in [0,1) and limit in [0,{MOST_LIMIT:g}]")

    @property
    def deciding(self) -> float:
        """The limit: Eq. 7's threshold where none is given."""
        return self.limit or self.threshold


@dataclass(frozen=True)
class Prompts:
    """q boxes with m points each, in image coordinates; `q == 0` means nothing was found.

    There are boxes exactly when `score > limit`.
    """

    score: float  # of the part
    limit: float
    boxes: NDArray[np.float32]  # [q,4] x_min, y_min, x_max, y_max, inclusive pixels
    points: NDArray[np.float32]  # [q,m,2] (x, y), all foreground
    components: tuple[Component, ...]  # all that were found, those with a box first

    @property
    def dropped(self) -> int:
        """How many components got no box, being more than max_boxes."""
        return len(self.components) - len(self.boxes)

    def __len__(self) -> int:
        return len(self.boxes)

    def coordinates(self) -> NDArray[np.float32]:
        """[q,m+2,2]: the points, then the box's two corners: the order SAM's encoder expects."""
        return np.concatenate([self.points, self.boxes.reshape(-1, 2, 2)], axis=1)

    def labels(self) -> NDArray[np.float32]:
        """[q,m+2] labels of `coordinates`."""
        one = [FOREGROUND] * self.points.shape[1] + [BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]
        return np.tile(np.array(one, np.float32), (len(self), 1))


def find_prompts(rough: NDArray[np.float32], options: PromptOptions, added: float = 0.0) -> Prompts:
    """Score and prompts of the rough map O_f [H,W], in image coordinates.

    `added` is what else speaks against the part (its distance from reference parts), in units of
    the map: it raises the score, and the map says where.
    """
    smallest = pixel_area(options.min_area, rough.shape)
    level = component_level(rough, smallest)
    score, limit = level + added, options.deciding
    components = []
    if score > limit:
        # Half the level at least: without what was added, the whole part may be above the limit.
        rest = max(limit - added, min(limit, level / 2))
        components = _components(rough, level, rest, smallest, options.threshold)
    kept = components[: options.max_boxes]
    boxes = np.array([[c.x_min, c.y_min, c.x_max, c.y_max] for c in kept], np.float32)
    if options.points == "shared" and kept:
        points = np.stack([_draw(kept, options)] * len(kept))
    else:
        points = np.array([_draw([c], options) for c in kept], np.float32)
    return Prompts(
        score,
        limit,
        boxes.reshape(-1, 4),
        points.reshape(-1, options.num_points, 2),
        tuple(components),
    )


def some_prompts(
    prompts: Prompts, chosen: Sequence[int], options: PromptOptions, corner: tuple[int, int]
) -> Prompts:
    """The chosen boxes, in the coordinates of a crop whose first pixel is `corner` (x, y).

    Points that boxes share are drawn again, of their components alone: those of others may lie
    outside the crop. The components stay in image coordinates.
    """
    kept = [prompts.components[i] for i in chosen]
    points = prompts.points[list(chosen)]
    if options.points == "shared":
        points = np.stack([_draw(kept, options)] * len(kept))
    origin = np.array(corner, np.float32)
    boxes = prompts.boxes[list(chosen)] - np.tile(origin, 2)
    return replace(prompts, boxes=boxes, points=points - origin, components=tuple(kept))


def _components(
    rough: NDArray[np.float32], level: float, limit: float, smallest: int, threshold: float
) -> list[Component]:
    """The components of {O_f > threshold} that hold one of {O_f > limit} of the smallest size.

    There is one at least: the one that gives the part its `level`. Where the limit is the lower of
    the two, it also says how far a defect reaches.
    """
    limit = min(limit, float(np.nextafter(np.float32(level), np.float32(-np.inf))))
    strong = find_components(rough > below(limit), rough, smallest)
    if threshold >= limit:
        return strong
    certain = np.zeros(rough.size, np.bool_)
    certain[np.concatenate([component.pixels for component in strong])] = True
    wide = find_components(rough > below(threshold), rough, smallest)
    return [component for component in wide if certain[component.pixels].any()]


def _draw(components: list[Component], options: PromptOptions) -> NDArray[np.float32]:
    """m random pixels [m,2] (x, y) of the components.

    Every pixel has a fixed pseudo-random rank made from its position and the seed, and the m
    lowest ranks win. That is a uniform draw without replacement, yet a pixel that joins or leaves
    a component because another backend rounds differently almost never changes it.
    """
    lowest = np.zeros(0, np.uint64)  # ranks, ascending
    winners = np.zeros(0, np.intp)
    for component in components:
        for start in range(0, component.area, _DRAWN):
            pixels = component.pixels[start : start + _DRAWN]
            rank = _mix(pixels.astype(np.uint64), options.seed)
            if len(lowest) == options.num_points:  # then few of the next can win
                near = np.flatnonzero(rank < lowest[-1])
                rank, pixels = rank[near], pixels[near]
            rank, pixels = np.append(lowest, rank), np.append(winners, pixels)
            count = min(options.num_points, len(rank))
            first = np.argpartition(rank, count - 1)[:count]
            first = first[np.argsort(rank[first])]
            lowest, winners = rank[first], pixels[first]
    winners = np.resize(winners, options.num_points)  # fewer pixels than points: repeat them
    ys, xs = np.divmod(winners, components[0].map_width)
    return np.stack([xs, ys], axis=1).astype(np.float32)


def _mix(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """SplitMix64 from a start that the seed alone decides: a bijection that looks random.

    The seed is mixed before it is added. Added as it is, the next seed would draw the same points
    one pixel further on.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        start = _finalise(np.array(seed % 2**64, np.uint64) * golden)
        values = values + start
        values *= golden
        values += golden
        return _finalise(values)


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser; 0 stays 0."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
