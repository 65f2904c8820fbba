"""From the rough map to SAM's prompts: binarise, components, boxes, points (Sec. 3.3, Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.components import Component, find_components, pixel_area

# SAM's labels of a prompt's points.
FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 1, 2, 3


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are made; part of the bundle's manifest."""

    threshold: float = 0.47  # Eq. 7; table 3
    points: str = "shared"  # "shared": every box gets the same m points (the paper);
    #                         "per_region": each box gets m points of its own component
    num_points: int = 5  # m (paper: unspecified)
    max_boxes: int = 16  # at most q_max components, largest evidence first
    min_area: float = 1e-4  # of the image's area; smaller components are ignored
    seed: int = 0  # of the points' draw

    def __post_init__(self) -> None:
        if self.points not in ("shared", "per_region"):
            raise ValueError(f"points={self.points!r} must be 'shared' or 'per_region'")
        if not 0 < self.threshold < 1 or self.num_points < 1 or self.max_boxes < 1:
            raise ValueError("threshold must lie in (0,1), num_points and max_boxes be positive")
        if not 0 <= self.min_area < 1:
            raise ValueError("min_area must lie in [0,1)")


@dataclass(frozen=True)
class Prompts:
    """q boxes with m points each, in image coordinates; `q == 0` means nothing was found."""

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


def find_prompts(rough: NDArray[np.float32], options: PromptOptions) -> Prompts:
    """Prompts from the rough map O_f [H,W] in image coordinates."""
    binary = rough > options.threshold  # Eq. 7
    components = find_components(binary, rough, pixel_area(options.min_area, rough.shape))
    kept = components[: options.max_boxes]
    boxes = np.array([[c.x_min, c.y_min, c.x_max, c.y_max] for c in kept], np.float32)
    width = rough.shape[1]
    if options.points == "shared" and kept:
        points = np.stack([_draw(kept, width, options)] * len(kept))
    else:
        points = np.array([_draw([c], width, options) for c in kept], np.float32)
    return Prompts(
        boxes.reshape(-1, 4),
        points.reshape(-1, options.num_points, 2),
        tuple(components),
    )


def _draw(components: list[Component], width: int, options: PromptOptions) -> NDArray[np.float32]:
    """m random pixels [m,2] (x, y) of the components.

    Every pixel has a fixed pseudo-random rank made from its position and the seed, and the m
    lowest ranks win. That is a uniform draw without replacement, yet a pixel that joins or leaves
    a component because another backend rounds differently almost never changes it.
    """
    pairs = [component.pixels() for component in components]
    xs = np.concatenate([x for x, _ in pairs])
    ys = np.concatenate([y for _, y in pairs])
    rank = _mix((ys * width + xs).astype(np.uint64), options.seed)
    count = min(options.num_points, len(rank))
    lowest = np.argpartition(rank, count - 1)[:count]
    lowest = lowest[np.argsort(rank[lowest])]
    lowest = np.resize(lowest, options.num_points)  # fewer pixels than points: repeat them
    return np.stack([xs[lowest], ys[lowest]], axis=1).astype(np.float32)


def _mix(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """SplitMix64 from a start that the seed alone decides: a bijection that looks random.

    The seed is mixed before it is added. Added as it is, the next seed would draw the same points
    one pixel further on.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        start = _finalise(np.array(seed % 2**64, np.uint64) * golden)
        return _finalise((values + start) * golden + golden)


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser; 0 stays 0."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed
