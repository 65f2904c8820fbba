"""Procedural defects as small and thin as the picture can show: nicks, hairlines, pinholes, ragged
edges.

Their least size is a pixel or two and not a share of the frame, so a large picture has small ones.
Each returns the HxW mask of what is visible, or None.
"""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.runtime.planting.canvas import (
    Canvas,
    Mask,
    along_grain,
    change_tone,
    cut,
    edge_spot,
    random_spot,
)
from clipsam.runtime.planting.shapes import drawn, ragged, stroke, walk
from clipsam.runtime.planting.textures import (
    Rng,
    f32,
    fractal,
    integer,
    log_uniform,
    uniform,
)

_SMALLEST = 1.5  # of a label, in square units: a sixth of what other defects need


def _length(rng: Rng, canvas: Canvas, pixels: float, low: float, high: float) -> float:
    """A length in pixels: `low` to `high` units, and never less than `pixels`."""
    least = max(pixels, low * canvas.unit)
    return log_uniform(rng, least, max(1.6 * least, high * canvas.unit))


def nick(rng: Rng, canvas: Canvas) -> Mask | None:
    """A small, angular piece out of the edge."""
    edge = edge_spot(rng, canvas)
    if edge is None:
        return None
    x, y, inwards = edge
    half, depth = _length(rng, canvas, 2.5, 0.8, 5), _length(rng, canvas, 2.5, 0.8, 5)
    corners = integer(rng, 1, 4)
    # Along the outline, from before it on one side to before it on the other.
    along = np.concatenate([[-1.2], np.sort(rng.uniform(-0.9, 0.9, corners)), [1.2]]) * half
    into = np.concatenate([[-0.8], rng.uniform(0.5, 1.0, corners), [-0.8]]) * depth
    points = np.stack(
        [
            x + into * np.cos(inwards) - along * np.sin(inwards),
            y + into * np.sin(inwards) + along * np.cos(inwards),
        ],
        axis=1,
    )
    plate = np.zeros((canvas.size, canvas.size), np.uint8)
    fixed = np.round(points * 16).astype(np.int32)
    cv2.fillPoly(plate, [fixed], (255.0,), cv2.LINE_AA, 4)
    return cut(canvas, drawn(plate, 0.0))


def hairline(rng: Rng, canvas: Canvas) -> Mask | None:
    """A hair crack or a fine scratch: one line, a pixel or two wide."""
    size, unit = canvas.size, canvas.unit
    length = log_uniform(rng, 8, 70) * unit
    width = _length(rng, canvas, 1.0, 0.25, 1.1)
    x, y = random_spot(rng, canvas)
    angle = along_grain(rng, canvas, 0.3)
    cracked = rng.random() < 0.5
    steps = int(np.clip(length / (3 * unit), 4, 60))
    start = (x - np.cos(angle) * length / 2, y - np.sin(angle) * length / 2)
    jitter = uniform(rng, 0.15, 0.45) if cracked else uniform(rng, 0.003, 0.04)
    points = walk(rng, start, angle, length, steps, 0.0 if cracked else rng.normal(0, 0.3), jitter)
    plate = np.zeros((size, size), np.uint8)
    widths = width * np.sin(np.linspace(0.5, np.pi - 0.5, steps))
    stroke(plate, points, widths, rng.uniform(150, 255, steps))
    alpha = drawn(plate, uniform(rng, 0, 0.4) * width)
    dark = 0.9 if cracked else 0.4
    return change_tone(
        rng, canvas, alpha, dark=dark, opaque=uniform(rng, 0, 0.6), smallest=_SMALLEST
    )


def pinhole(rng: Rng, canvas: Canvas) -> Mask | None:
    """A pore or a speck, or a handful of them near each other."""
    count = 1 if rng.random() < 0.5 else integer(rng, 2, 7)
    radius = _length(rng, canvas, 1.2, 0.35, 1.6)
    spread = log_uniform(rng, 4, 30) * canvas.unit
    x, y = random_spot(rng, canvas)
    alpha = np.zeros((canvas.size, canvas.size), np.float32)
    for number in range(count):
        away = spread * (number > 0)
        at = (x + rng.normal(0, 1) * away, y + rng.normal(0, 1) * away)
        long = max(1.2, radius * uniform(rng, 0.6, 1.2))
        radii = (long, max(1.2, long * uniform(rng, 0.6, 1.0)))
        spot = ragged(
            rng, canvas.size, at, radii, uniform(rng, 0, np.pi), uniform(rng, 0, 0.3), 0.6 * radius
        )
        alpha = np.maximum(alpha, spot)
    opaque = uniform(rng, 0.3, 1)
    return change_tone(rng, canvas, alpha, dark=0.8, opaque=opaque, smallest=_SMALLEST)


def ragged_edge(rng: Rng, canvas: Canvas) -> Mask | None:
    """A stretch of the outline eaten away unevenly: splinters, a crumbled or a torn rim."""
    edge = edge_spot(rng, canvas)
    if edge is None:
        return None
    size, unit = canvas.size, canvas.unit
    depth, reach = _length(rng, canvas, 2.5, 1, 5), log_uniform(rng, 8, 45) * unit
    tooth = uniform(rng, 1.5, 5) * max(1.0, 0.5 * unit)  # pixels
    teeth = np.abs(fractal(rng, size, size / tooth, 3, 0.6))
    x = np.arange(size, dtype=np.float32)[None, :] - np.float32(edge[0])
    y = np.arange(size, dtype=np.float32)[:, None] - np.float32(edge[1])
    fading = np.clip(2 - 2 * np.hypot(x, y) / np.float32(reach), 0, 1)
    inside = f32(cv2.distanceTransform(canvas.part.astype(np.uint8), cv2.DIST_L2, 5))
    return cut(canvas, f32(np.clip(np.float32(depth) * teeth * fading - inside + 0.5, 0, 1)))
