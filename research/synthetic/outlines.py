"""Silhouettes that parts and clutter are drawn with.

Everything returns coverage (uint8, 0 to 255) or corner points in pixels of a size x size frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.runtime.planting.textures import F32, U8, Rng, f32, integer, uniform


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
