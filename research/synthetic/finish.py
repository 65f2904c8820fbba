"""What a brush, a tool or a mould leaves on a good surface and is no defect.

Brush marks, bright streaks, turning marks and the grain of a casting. Nothing of it is labelled;
`canvas.roughness` rises with it, so that a defect has to stand out from it.
"""

from __future__ import annotations

import numpy as np

from clipsam.runtime.planting.canvas import Canvas, relief
from clipsam.runtime.planting.textures import (
    F32,
    Rng,
    f32,
    fractal,
    log_uniform,
    noise,
    turned,
    uniform,
)

FINISHED = ("plain", "cloudy", "brushed", "rolled", "grain")  # families that metal is drawn with


def add_finish(rng: Rng, canvas: Canvas) -> None:
    """Change `canvas.image` by one to four of them."""
    before = canvas.image.copy()
    finishes = (_brush_marks, _streaks, _turning_marks, _cast_grain)
    chosen = rng.random(len(finishes)) < (0.6, 0.5, 0.25, 0.35)
    if not chosen.any():
        chosen[int(rng.integers(2))] = True
    for finish, wanted in zip(finishes, chosen, strict=True):
        if wanted:
            finish(rng, canvas)
    np.clip(canvas.image, 0, 1, out=canvas.image)
    inside = canvas.solid > 0.5
    change = np.abs(canvas.image - before).mean(axis=2)[inside]
    if change.size:
        canvas.roughness += 0.5 * float(np.quantile(change, 0.95))


def _brush_marks(rng: Rng, canvas: Canvas) -> None:
    """Fine lines along the grain, never few: those would be scratches."""
    width = log_uniform(rng, 0.5, 2.5) * canvas.unit
    aspect = log_uniform(rng, 15, 100)
    field = turned(
        lambda n: noise(rng, n, n / (width * aspect), n / width), canvas.size, canvas.axis
    )
    marks = np.maximum(np.abs(field) - np.float32(uniform(rng, 0.3, 1.2)), 0)
    marks = np.where(field > 0, marks, -np.float32(uniform(rng, 0, 1)) * marks)
    where = fractal(rng, canvas.size, uniform(rng, 2, 5), 2, 0.5) * np.float32(0.5) + np.float32(
        uniform(rng, 0.3, 1)
    )
    _add(canvas, f32(marks * np.clip(where, 0, 1)), log_uniform(rng, 0.05, 0.3))


def _streaks(rng: Rng, canvas: Canvas) -> None:
    """Bright bands along the grain, as brushed and ground metal shines; soft or narrow."""
    across = log_uniform(rng, 6, 50)
    field = turned(lambda n: noise(rng, n, 2, across), canvas.size, canvas.axis)
    glow = np.maximum(field - np.float32(uniform(rng, -0.5, 0.7)), 0)
    _add(canvas, f32(glow), log_uniform(rng, 0.06, 0.4))


def _turning_marks(rng: Rng, canvas: Canvas) -> None:
    """Rings around a centre, which may lie outside the frame, stronger on some sides of it."""
    size = canvas.size
    rows, columns = np.nonzero(canvas.part[::4, ::4])
    x, y = (4 * float(columns.mean()), 4 * float(rows.mean())) if len(rows) else (size / 2,) * 2
    if canvas.surface or rng.random() < 0.4:
        x, y = uniform(rng, -1, 2) * size, uniform(rng, -1, 2) * size
    axis = np.arange(size, dtype=np.float32)
    radius = np.hypot(axis[None, :] - np.float32(x), axis[:, None] - np.float32(y))
    pitch = log_uniform(rng, 0.8, 4) * canvas.unit
    steps = rng.standard_normal(int(radius.max() / pitch) + 3)
    rings = f32(np.interp(radius / pitch, np.arange(len(steps)), steps))
    sides = np.clip(fractal(rng, size, 2, 2, 0.5) * np.float32(0.6) + np.float32(0.6), 0, 1.2)
    _add(canvas, f32(rings * sides), log_uniform(rng, 0.03, 0.2))


def _cast_grain(rng: Rng, canvas: Canvas) -> None:
    """The bumps of a sand-cast surface in raking light."""
    cell = log_uniform(rng, 1.5, 6) * canvas.unit
    height = fractal(rng, canvas.size, canvas.size / cell, 3, uniform(rng, 0.4, 0.8))
    relief(canvas, height, log_uniform(rng, 0.06, 0.3))


def _add(canvas: Canvas, field: F32, amount: float) -> None:
    """The field, its strongest parts `amount` (1 = white) strong."""
    strongest = float(np.quantile(np.abs(field[::2, ::2]), 0.999))
    if strongest > 1e-6:
        canvas.image += field[..., None] * np.float32(amount / strongest)
