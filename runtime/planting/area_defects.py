"""Procedural defects that cover an area: stains, patches, other textures, unevenness.

Each changes ``canvas.image`` and returns the HxW mask of what is visible, or None.
"""

from __future__ import annotations

import numpy as np

from clipsam.runtime.planting.canvas import (
    Canvas,
    Mask,
    along_grain,
    box_of,
    change_tone,
    cover,
    random_spot,
    required_change,
    visible_mask,
)
from clipsam.runtime.planting.shapes import ragged, soft_area
from clipsam.runtime.planting.textures import (
    CONTRAST,
    F32,
    FAMILIES,
    Rng,
    blur,
    f32,
    fractal,
    integer,
    log_uniform,
    noise,
    texture,
    turned,
    uniform,
)


def stain(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 8, 60) * canvas.unit
    alpha = soft_area(rng, canvas, radius, (0.4, 1), (0.1, 0.5), (0.2, 0.8))
    if rng.random() < 0.35:  # a dried ring: the rim is stronger than the middle
        alpha = alpha * (1 - np.float32(uniform(rng, 0.2, 0.6)) * alpha)
        alpha = alpha / np.float32(max(float(alpha.max()), 1e-3))
    return change_tone(rng, canvas, alpha, dark=0.7, opaque=0.0, strong=0.35)


def uneven(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 30, 80) * canvas.unit
    alpha = soft_area(rng, canvas, radius, (0.3, 0.9), (0.1, 0.4), (0.1, 0.5), grain=0.4)
    return change_tone(rng, canvas, alpha, dark=0.65, opaque=uniform(rng, 0, 0.5), strong=0.3)


def _ellipses(rng: Rng, canvas: Canvas) -> F32:
    """One to six ragged ellipses, near each other or all over the part."""
    size, unit = canvas.size, canvas.unit
    angle = along_grain(rng, canvas, 0.7)
    radius = log_uniform(rng, 10, 72) * unit
    x, y = random_spot(rng, canvas)
    scattered = rng.random() < 0.4
    alpha = np.zeros((size, size), np.float32)
    for _ in range(integer(rng, 2, 6) if scattered else integer(rng, 1, 3)):
        big = radius * uniform(rng, 0.4, 1) * (0.7 if scattered else 1.0)
        at = (x + rng.normal(0, 0.8 * radius), y + rng.normal(0, 0.8 * radius))
        area = ragged(
            rng,
            size,
            random_spot(rng, canvas) if scattered else at,
            (big, big * uniform(rng, 0.3, 0.8)),
            angle + rng.normal(0, 0.3),
            uniform(rng, 0.2, 0.55),
            1 + uniform(rng, 0, 0.25) * radius,
            uniform(rng, 3, 8),
        )
        alpha = np.maximum(alpha, area)
    return alpha


def _islands(rng: Rng, canvas: Canvas) -> F32:
    """What of a smooth noise stands above a level: areas that merge and run out of the frame.

    Stretched along the grain, as scale and oxide lie on rolled metal.
    """
    size = canvas.size
    cells, aspect = uniform(rng, 1.6, 6), log_uniform(rng, 1, 4)
    octaves, gain = integer(rng, 3, 5), uniform(rng, 0.25, 0.55)
    field = turned(
        lambda n: fractal(rng, n, cells, octaves, gain, aspect), size, canvas.axis + np.pi / 2
    )
    level = float(np.quantile(field[::4, ::4], 1 - uniform(rng, 0.05, 0.48)))
    edge = log_uniform(rng, 0.05, 0.5)
    return blur(np.clip((field - level) / np.float32(edge) + 0.5, 0, 1), uniform(rng, 0, 1.5))


def patch(rng: Rng, canvas: Canvas) -> Mask | None:
    """A broad ragged area, or several, of changed brightness and texture contrast."""
    size, unit = canvas.size, canvas.unit
    islands = rng.random() < (0.7 if canvas.surface else 0.2)
    alpha = _islands(rng, canvas) if islands else _ellipses(rng, canvas)
    mask = visible_mask(canvas, alpha)
    if int(mask.sum()) < 30 * unit:
        return None
    box = box_of(alpha)
    inside = mask[box]
    old = canvas.image[box]
    mean = old[inside].mean(axis=0)
    need = 1.4 * required_change(canvas, mask)  # fainter ones are what good surfaces look like
    dark = 0.95 if islands else 0.8  # oxide, dirt and scale are darker than what they lie on
    most = max(0.5, 1.5 * need)
    shift = log_uniform(rng, need, most) if rng.random() < 0.5 else uniform(rng, need, most)
    shift *= -1 if rng.random() < dark else 1
    if not 0.04 < float(mean.mean()) + shift < 0.96:
        shift = -shift
    grain = noise(rng, size, size * uniform(rng, 0.2, 1))[box][..., None]
    other = mean + np.float32(shift) + np.float32(uniform(rng, 0.4, 1.5)) * (old - mean)
    other += grain * np.float32(uniform(rng, 0, 0.6) * canvas.roughness)
    return cover(canvas, alpha, f32(other))


def foreign(rng: Rng, canvas: Canvas) -> Mask | None:
    """A piece of another texture, or of this one turned and re-toned."""
    size, unit = canvas.size, canvas.unit
    radius = log_uniform(rng, 6, 45) * unit
    radii = (radius, radius * uniform(rng, 0.3, 1))
    alpha = ragged(
        rng,
        size,
        random_spot(rng, canvas),
        radii,
        uniform(rng, 0, np.pi),
        uniform(rng, 0, 0.5),
        uniform(rng, 1, 4) * unit,
        uniform(rng, 2, 6),
    )
    channels = canvas.image.shape[2]
    if rng.random() < 0.6:
        family = list(FAMILIES)[integer(rng, 0, len(FAMILIES) - 1)]
        base = canvas.image[int(size / 2), int(size / 2)] + rng.normal(0, 0.15, channels)
        if rng.random() < 0.4:
            base = rng.uniform(0.05, 0.95, channels)
        contrast = log_uniform(rng, *CONTRAST[family]) * uniform(rng, 1, 2)
        field = texture(rng, size, family, uniform(rng, 0, np.pi))[..., None]
        other = f32(base) + field * np.float32(contrast)
    else:
        turned = np.rot90(canvas.image, integer(rng, 1, 3)) * np.float32(uniform(rng, 0.7, 1.3))
        other = f32(turned + np.float32(rng.normal(0, 0.1)))
    return cover(canvas, alpha, other[box_of(alpha)])
