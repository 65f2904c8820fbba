"""Procedural defects of a part's outline: what is missing shows the background.

They lower ``canvas.solid``, so that the background, its shadow and the bevel of the new edge follow
by themselves when the scene is composed. Each returns the HxW mask of what is gone, or None where
the canvas has no outline.
"""

from __future__ import annotations

import numpy as np

from clipsam.runtime.planting.canvas import Canvas, Mask, cut, edge_spot
from clipsam.runtime.planting.shapes import drawn, ragged, stroke, walk
from clipsam.runtime.planting.textures import (
    F32,
    Rng,
    blur,
    f32,
    fractal,
    integer,
    log_uniform,
    uniform,
)


def chip(rng: Rng, canvas: Canvas) -> Mask | None:
    """A bite out of the edge, ragged."""
    edge = edge_spot(rng, canvas)
    if edge is None:
        return None
    radius = log_uniform(rng, 4, 24) * canvas.unit
    radii = (radius, radius * uniform(rng, 0.4, 1))
    return cut(
        canvas,
        ragged(
            rng,
            canvas.size,
            edge[:2],
            radii,
            edge[2] + np.pi / 2,
            uniform(rng, 0.1, 0.4),
            1.2,
            uniform(rng, 3, 6),
        ),
    )


def missing(rng: Rng, canvas: Canvas) -> Mask | None:
    """A big bite, a broken-off side, or a gap that splits the part."""
    edge = edge_spot(rng, canvas)
    if edge is None:
        return None
    size, unit = canvas.size, canvas.unit
    x, y, inwards = edge
    extent = np.sqrt(float(canvas.part.sum()))
    pick = rng.random()
    if pick < 0.3:
        radius = extent * uniform(rng, 0.15, 0.4)
        gone = ragged(
            rng,
            size,
            (x, y),
            (radius, radius * uniform(rng, 0.5, 1)),
            uniform(rng, 0, np.pi),
            uniform(rng, 0.15, 0.4),
            1.2,
            uniform(rng, 3, 8),
        )
        return cut(canvas, gone)
    wobble = fractal(rng, size, uniform(rng, 3, 8), 5, 0.6) * np.float32(uniform(rng, 2, 7) * unit)
    angle = inwards + rng.normal(0, 0.4)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across_x = np.arange(size, dtype=np.float32)[None, :] - np.float32(x)
    across_y = np.arange(size, dtype=np.float32)[:, None] - np.float32(y)
    along = across_x * cos + across_y * sin
    if pick < 0.48 and not canvas.several:
        depth = extent * uniform(rng, 0.1, 0.4)
        return cut(canvas, np.clip(np.float32(depth) - along + wobble, 0, 1))
    if pick < 0.72:
        return cut(canvas, _rift(rng, canvas, edge, extent))
    # Broken and drawn apart: both faces of the gap have the same shape. Wide at its mouth, it ends
    # inside the part or splits it in two.
    side = across_y * cos - across_x * sin + wobble
    length, mouth = extent * uniform(rng, 0.4, 3), extent * log_uniform(rng, 0.03, 0.25)
    half = np.float32(mouth / 2) * np.clip(1 - along / np.float32(length), 0, 1)
    return cut(canvas, np.clip(half - np.abs(side), 0, 1))


def _rift(rng: Rng, canvas: Canvas, edge: tuple[float, float, float], extent: float) -> F32:
    """A winding gap from the border inwards, perhaps forked, with crumbled sides."""
    size, unit = canvas.size, canvas.unit
    plate = np.zeros((size, size), np.uint8)
    x, y, inwards = edge
    back = 6 * unit
    start = (x - np.cos(inwards) * back, y - np.sin(inwards) * back)
    length = extent * uniform(rng, 0.3, 1.2)
    mouth, tip = extent * log_uniform(rng, 0.03, 0.2), uniform(rng, 1, 4) * unit
    steps = int(np.clip(length / (5 * unit), 5, 40))
    points = walk(rng, start, inwards + rng.normal(0, 0.3), length, steps, 0.0, 0.22)
    fall = np.linspace(1, 0, steps) ** uniform(rng, 0.5, 1.5)
    stroke(
        plate,
        points,
        tip + (mouth - tip) * fall * rng.uniform(0.7, 1.3, steps),
        np.full(steps, 255.0),
    )
    if rng.random() < 0.4:
        at = points[integer(rng, steps // 3, steps - 1)]
        angle = inwards + uniform(rng, 0.5, 1.3) * (1 if rng.random() < 0.5 else -1)
        fork = walk(
            rng, (float(at[0]), float(at[1])), angle, length * uniform(rng, 0.2, 0.6), 8, 0.0, 0.25
        )
        stroke(plate, fork, np.linspace(0.6 * mouth + tip, tip, 8), np.full(8, 255.0))
    crumbled = fractal(rng, size, 24, 3, 0.7) * np.float32(uniform(rng, 0, 0.3))
    return f32(np.clip((blur(drawn(plate, 0.0), 1.5 * unit) + crumbled - 0.5) * 3 + 0.5, 0, 1))


def fray(rng: Rng, canvas: Canvas) -> Mask | None:
    """A stretch of the outline cut into by many narrow slits."""
    edge = edge_spot(rng, canvas)
    if edge is None:
        return None
    unit = canvas.unit
    plate = np.zeros((canvas.size, canvas.size), np.uint8)
    reach, depth = log_uniform(rng, 8, 35) * unit, log_uniform(rng, 4, 18) * unit
    for _ in range(integer(rng, 6, 22)):
        offset, angle = uniform(rng, -reach, reach), edge[2] + rng.normal(0, 0.35)
        back = 4 * unit
        start = (
            edge[0] - np.sin(edge[2]) * offset - np.cos(angle) * back,
            edge[1] + np.cos(edge[2]) * offset - np.sin(angle) * back,
        )
        points = walk(rng, start, angle, back + depth * uniform(rng, 0.3, 1), 4, 0, 0.2)
        stroke(plate, points, np.linspace(3, 1, 4) * unit, np.full(4, 255.0))
    return cut(canvas, drawn(plate, 0.0))
