"""Shapes that defects and outlines are drawn with: ragged areas, random walks, strokes, outlines.

Everything returns coverage (float32, 0 to 1) or corner points in pixels of a size x size frame.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.synthetic.textures import (
    F32,
    U8,
    Rng,
    blur,
    f32,
    fractal,
    integer,
    stretch,
    uniform,
)


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


def polygon(size: int, points: F32) -> U8:
    """A filled polygon (N x 2 points in pixels) with soft borders: uint8, 255 inside."""
    plate = np.zeros((size, size), np.uint8)
    cv2.fillPoly(plate, [np.round(points * 16).astype(np.int32)], (255.0,), cv2.LINE_AA, 4)
    return plate


def outline(rng: Rng, shape: str, centre: tuple[float, float], radius: float, angle: float) -> F32:
    """Corner points, N x 2 (x, y) in pixels, of one silhouette."""
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    cos, sin = np.cos(turn), np.sin(turn)
    if shape in ("disc", "ring"):
        squeeze = uniform(rng, 0.85, 1) if rng.random() < 0.3 else 1.0
        x, y = cos, sin * squeeze
    elif shape == "hexagon":
        turn = np.linspace(0, 2 * np.pi, integer(rng, 5, 8), endpoint=False)
        x, y = np.cos(turn), np.sin(turn)
    elif shape == "gear":
        teeth, depth = integer(rng, 4, 24), uniform(rng, 0.08, 0.25)
        wave = np.clip(np.sin(turn * teeth) * uniform(rng, 1, 4), -1, 1)
        x, y = cos * (1 - depth / 2 + wave * depth / 2), sin * (1 - depth / 2 + wave * depth / 2)
    elif shape == "polygon":
        turn = np.sort(rng.uniform(0, 2 * np.pi, integer(rng, 4, 8)))
        turn = turn * 0.3 + np.linspace(0, 2 * np.pi, len(turn), endpoint=False) * 0.7
        reach = rng.uniform(0.7, 1, len(turn))
        x, y = np.cos(turn) * reach, np.sin(turn) * reach
    elif shape == "blob":
        wobble = np.ones_like(turn)
        for order in range(2, 9):
            wobble += rng.normal(0, 0.11 / order) * np.cos(order * turn + uniform(rng, 0, 6.3))
        wobble += np.convolve(rng.normal(0, uniform(rng, 0, 0.02), 182), [0.5, 0.5, 0.5], "valid")
        x, y = cos * wobble, sin * wobble * uniform(rng, 0.65, 1)
    elif shape == "screw":
        t = np.linspace(-1, 1, 90)
        half = np.where(t < -0.7, 0.28, 0.13 + 0.02 * np.sign(np.sin(t * uniform(rng, 40, 90))))
        half = np.where(t > 0.85, half * (1 - t) / 0.15, half)
        x, y = np.concatenate([t, t[::-1]]), np.concatenate([half, -half[::-1]])
    else:  # super-ellipses: rounded rectangles, capsules, plates, strips
        power = 2 / uniform(rng, 3, 14)
        aspect = {"strip": uniform(rng, 0.12, 0.3), "capsule": uniform(rng, 0.3, 0.5)}.get(
            shape, uniform(rng, 0.5, 1)
        )
        x = np.sign(cos) * np.abs(cos) ** power
        y = np.sign(sin) * np.abs(sin) ** power * aspect
    turned_x = x * np.cos(angle) - y * np.sin(angle)
    turned_y = x * np.sin(angle) + y * np.cos(angle)
    return f32(np.stack([turned_x * radius + centre[0], turned_y * radius + centre[1]], 1))
