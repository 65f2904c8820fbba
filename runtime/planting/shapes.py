"""Shapes that defects are drawn with: ragged areas, random walks, strokes.

Areas are coverage (float32, 0 to 1) of a size x size frame, paths are points (x, y) in its pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.planting.canvas import Canvas, along_grain, random_spot
from clipsam.runtime.planting.textures import (
    F32,
    U8,
    Rng,
    blur,
    f32,
    fractal,
    stretch,
    uniform,
)

Range = tuple[float, float]  # low, high


def ragged(
    rng: Rng,
    size: int,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float,
    rough: float,
    soft: float,
    cells: float = 3,
) -> F32:
    """An ellipse with a noisy outline: alpha, size x size; soft is the width of its edge (px)."""
    alpha = np.zeros((size, size), np.float32)
    reach = max(radii) * (1 + 2 * rough) + soft + 2
    left, top = int(max(0, centre[0] - reach)), int(max(0, centre[1] - reach))
    right, bottom = (int(min(size, value + reach + 1)) for value in centre)
    if right - left < 2 or bottom - top < 2:
        return alpha
    x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(centre[0])
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (x * cos + y * sin) / np.float32(radii[0]), (y * cos - x * sin) / np.float32(radii[1])
    distance = np.sqrt(u * u + v * v)
    if rough > 0 and min(radii) > 1.5:
        side = int(min(max(distance.shape), max(16, 6 * cells)))
        wobble = fractal(rng, side, cells, 4, 0.6)
        distance += np.float32(rough) * stretch(wobble, *distance.shape)
    ramp = np.float32(max(soft, 1.0) / np.sqrt(radii[0] * radii[1]))
    alpha[top:bottom, left:right] = np.clip((1 - distance) / ramp + np.float32(0.5), 0, 1)
    return alpha


def soft_area(
    rng: Rng,
    canvas: Canvas,
    radius: float,
    flat: Range,
    rough: Range,
    soft: Range,
    grain: float = 0.0,
) -> F32:
    """An ellipse somewhere on the part, as alpha; `radius` in pixels of the canvas.

    Drawn from ranges: its other radius and the width of its edge as shares of `radius`, and the
    roughness of its outline. `grain` is the chance that it lies along the texture's grain.
    """
    radii = (radius, radius * uniform(rng, *flat))
    at = random_spot(rng, canvas)
    angle = along_grain(rng, canvas, grain) if grain else uniform(rng, 0, np.pi)
    roughness = uniform(rng, *rough)
    return ragged(rng, canvas.size, at, radii, angle, roughness, radius * uniform(rng, *soft))


def walk(
    rng: Rng,
    start: tuple[float, float],
    angle: float,
    length: float,
    steps: int,
    bend: float,
    jitter: float,
) -> NDArray[np.float64]:
    """A path of steps + 1 points (x, y): constant bend plus random turns (radians)."""
    turns = np.cumsum(rng.normal(0, jitter, steps)) + np.linspace(-bend / 2, bend / 2, steps)
    moves = np.stack([np.cos(angle + turns), np.sin(angle + turns)], 1) * (length / steps)
    return np.concatenate([[start], start + np.cumsum(moves, 0)])


def stroke(
    plate: U8, points: NDArray[np.float64], widths: NDArray[np.float64], values: NDArray[np.float64]
) -> None:
    """Draw a path, segment by segment, in sub-pixel steps, with changing width and value."""
    fixed = np.clip(np.round(points * 16), -1 << 18, 1 << 18).astype(int)
    for index in range(len(fixed) - 1):
        cv2.line(
            plate,
            tuple(map(int, fixed[index])),
            tuple(map(int, fixed[index + 1])),
            (float(values[index]),),
            max(1, round(float(widths[index]))),
            cv2.LINE_AA,
            4,
        )


def drawn(plate: U8, sigma: float) -> F32:
    """A drawn plate as alpha, slightly softened, with the line centres kept near 1."""
    alpha = f32(plate) * np.float32(1 / 255)
    if sigma >= 0.3:
        alpha = blur(alpha, sigma) * np.float32(1 + 0.5 * sigma)
    return f32(np.minimum(alpha, np.float32(1)))
