"""Procedural defects: each draws itself on a part and returns the mask of what became visible.

A `Canvas` is a part before it is placed, lit and photographed. Surface defects change
``canvas.image``; defects of the outline (chipped edge, missing part, fray) lower
``canvas.solid``, so that the background, its shadow and the bevel of the new edge follow by
themselves when the scene is composed. All lengths are given for a frame of 192 pixels and
multiplied by ``canvas.unit``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.synthetic_textures import (
    CONTRAST,
    F32,
    FAMILIES,
    U8,
    Rng,
    blur,
    f32,
    fractal,
    integer,
    log_uniform,
    noise,
    stretch,
    texture,
    uniform,
)

Mask = NDArray[np.bool_]

DEFECT_KINDS: tuple[str, ...] = (
    "scratch", "crack", "hole", "blob", "stain", "foreign texture", "chipped edge",
    "missing part", "dent", "patch", "inclusion", "uneven", "fray",
)
OUTLINE_KINDS = ("chipped edge", "missing part", "fray")

LABEL_ALPHA = 0.3
"""A soft defect is labelled where at least this share of its full effect is present."""
VISIBLE = 0.03
"""Smallest mean absolute change (1 = full scale) over a large defect on a smooth surface."""


@dataclass
class Canvas:
    """A part while it is being made; images are float32 HxWxC, C = 1 or 3, 1.0 = white."""

    image: F32
    background: F32
    part: Mask
    solid: F32
    surface: bool
    axis: float
    light: float
    roughness: float

    @property
    def size(self) -> int:
        return int(self.image.shape[0])

    @property
    def unit(self) -> float:
        return self.size / 192.0


def required_change(canvas: Canvas, area: float) -> float:
    """The mean absolute change a defect of this area (pixels) needs to be seen on this part."""
    side = np.sqrt(max(area, 1.0)) / canvas.unit
    return max(VISIBLE, 0.5 * canvas.roughness) * (1 + 5 / (side + 3))


def _spot(rng: Rng, canvas: Canvas) -> tuple[float, float]:
    """A random point (x, y) on the solid part."""
    size = canvas.size
    point = (size / 2, size / 2)
    for _ in range(24):
        point = (uniform(rng, 0.02, 0.98) * size, uniform(rng, 0.02, 0.98) * size)
        if canvas.solid[int(point[1]), int(point[0])] > 0.5:
            break
    return point


def _edge_spot(rng: Rng, canvas: Canvas) -> tuple[float, float, float] | None:
    """A point (x, y) on the outline that lies in the frame, and the direction inwards."""
    contours, _ = cv2.findContours(
        canvas.part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    margin = 3 * canvas.unit
    for _ in range(8 if contours else 0):
        contour = contours[integer(rng, 0, len(contours) - 1)][:, 0, :]
        x, y = (float(value) for value in contour[integer(rng, 0, len(contour) - 1)])
        if min(x, y) < margin or max(x, y) > canvas.size - 1 - margin:
            continue
        reach = max(2, round(6 * canvas.unit))
        left, top = max(0, int(x) - reach), max(0, int(y) - reach)
        window = canvas.part[top:int(y) + reach + 1, left:int(x) + reach + 1]
        rows, columns = np.nonzero(window)
        if len(rows):
            inwards = np.arctan2(rows.mean() + top - y, columns.mean() + left - x)
            return x, y, float(inwards)
    return None


def _along(rng: Rng, canvas: Canvas, chance: float = 0.6) -> float:
    """An angle: the grain of the texture (or across it) with some spread, or anything."""
    pick = rng.random()
    if pick < chance:
        return canvas.axis + np.pi / 2 + uniform(rng, -0.06, 0.06)
    if pick < chance + 0.1:
        return canvas.axis + uniform(rng, -0.1, 0.1)
    return uniform(rng, 0, np.pi)


def _ragged(rng: Rng, size: int, centre: tuple[float, float], radii: tuple[float, float],
            angle: float, rough: float, soft: float, cells: float = 3) -> F32:
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


def _box(alpha: F32) -> tuple[slice, slice]:
    x, y, width, height = cv2.boundingRect((alpha > 0.004).astype(np.uint8))
    return slice(y, y + height), slice(x, x + width)


def _keep(canvas: Canvas, alpha: F32) -> Mask:
    return (alpha > LABEL_ALPHA) & (canvas.solid > 0.5) & canvas.part


def _tone(rng: Rng, canvas: Canvas, alpha: F32, *, dark: float = 0.6, opaque: float = 0.3,
          strong: float = 0.5) -> Mask | None:
    """Shift the tone under alpha (dark = chance of a darker one); None if it cannot be seen."""
    mask = _keep(canvas, alpha)
    area = int(mask.sum())
    if area < 6 * canvas.unit:
        return None
    box = _box(alpha)
    old, inside = canvas.image[box], mask[box]
    weight = (alpha[box] * (canvas.solid[box] > 0.02))[..., None]
    channels = old.shape[2]
    tint = np.ones(channels, np.float32)
    if channels == 3:
        tint += rng.normal(0, 0.35 if rng.random() < 0.5 else 0.06, 3).astype(np.float32)
    need = required_change(canvas, area)
    sign = -1.0 if rng.random() < dark else 1.0
    amount = log_uniform(rng, need, max(strong, 1.3 * need))
    mean = old[inside].mean(axis=0)
    for _ in range(4):
        delta = np.float32(sign * amount) * tint
        change = delta if opaque < 0.05 else delta + np.float32(opaque) * (mean - old)
        new = np.clip(old + weight * change, 0, 1)
        got = float(np.abs(new - old).mean(axis=2)[inside].mean())
        if got >= need:
            canvas.image[box] = new
            return mask
        if amount > 0.25:  # saturated: there is no more room in this direction
            sign, amount = -sign, need
        amount = amount * min(4.0, max(1.25, need / max(got, 1e-3)))
    return None


def _walk(rng: Rng, start: tuple[float, float], angle: float, length: float, steps: int,
          bend: float, jitter: float) -> NDArray[np.float64]:
    """A path of steps + 1 points (x, y): constant bend plus random turns (radians)."""
    turns = np.cumsum(rng.normal(0, jitter, steps)) + np.linspace(-bend / 2, bend / 2, steps)
    moves = np.stack([np.cos(angle + turns), np.sin(angle + turns)], 1) * (length / steps)
    return np.concatenate([[start], start + np.cumsum(moves, 0)])


def _stroke(plate: U8, points: NDArray[np.float64], widths: NDArray[np.float64],
            values: NDArray[np.float64]) -> None:
    """Draw a path, segment by segment, in sub-pixel steps, with changing width and value."""
    fixed = np.clip(np.round(points * 16), -1 << 18, 1 << 18).astype(int)
    for index in range(len(fixed) - 1):
        cv2.line(plate, tuple(map(int, fixed[index])), tuple(map(int, fixed[index + 1])),
                 (float(values[index]),), max(1, round(float(widths[index]))), cv2.LINE_AA, 4)


def _drawn(plate: U8, sigma: float) -> F32:
    """A drawn plate as alpha, slightly softened, with the line centres kept near 1."""
    alpha = f32(plate) * np.float32(1 / 255)
    if sigma >= 0.3:
        alpha = blur(alpha, sigma) * np.float32(1 + 0.5 * sigma)
    return np.minimum(alpha, np.float32(1))


def _scratch(rng: Rng, canvas: Canvas) -> Mask | None:
    size, unit = canvas.size, canvas.unit
    plate = np.zeros((size, size), np.uint8)
    count = 1 if rng.random() < 0.5 else integer(rng, 2, 9)
    angle = _along(rng, canvas, 0.4)
    x, y = _spot(rng, canvas)
    spread = log_uniform(rng, 3, 22) * unit
    reach = log_uniform(rng, 0.12, 1.3) * size
    bend, jitter = rng.normal(0, 0.3), log_uniform(rng, 0.004, 0.08)
    # Some scratches skip: their strength changes along the path, down to nothing.
    skip = uniform(rng, 0, 1.1) if rng.random() < 0.5 else 0.2
    for _ in range(count):
        length = reach * uniform(rng, 0.4, 1.0) if count > 1 else reach
        across = rng.normal(0, spread)
        shift = uniform(rng, -0.25, 0.25) * reach if count > 1 else 0.0
        begin = (x - np.cos(angle) * (length / 2 + shift) - np.sin(angle) * across * (count > 1),
                 y - np.sin(angle) * (length / 2 + shift) + np.cos(angle) * across * (count > 1))
        steps = int(np.clip(length / (5 * unit), 4, 40))
        points = _walk(rng, begin, angle, length, steps, bend, jitter)
        taper = np.sin(np.linspace(0.25, np.pi - 0.25, steps))
        swing = np.interp(np.arange(steps), np.arange(0, steps + 4, 3),
                          rng.random(len(np.arange(0, steps + 4, 3))))
        widths = log_uniform(rng, 0.8, 4.2) * unit * (0.4 + 0.6 * taper)
        _stroke(plate, points, widths, 255 * np.clip(1 - skip * swing, 0, 1))
    alpha = _drawn(plate, uniform(rng, 0, 0.9) * unit)
    return _tone(rng, canvas, alpha, dark=0.35, opaque=uniform(rng, 0, 0.7), strong=0.6)


def _crack(rng: Rng, canvas: Canvas) -> Mask | None:
    size, unit = canvas.size, canvas.unit
    plate = np.zeros((size, size), np.uint8)
    reach = log_uniform(rng, 0.15, 1.2) * size
    width = log_uniform(rng, 0.9, 4.5) * unit
    jitter = uniform(rng, 0.15, 0.5)
    start = _spot(rng, canvas)
    if not canvas.surface and rng.random() < 0.5:
        edge = _edge_spot(rng, canvas)
        start = edge[:2] if edge else start
        todo = [(start, edge[2] if edge else 0.0, reach, width)]
    else:
        angle = uniform(rng, 0, 2 * np.pi)
        todo = [(start, angle, reach / 2, width), (start, angle + np.pi, reach / 2, width)]
    budget = integer(rng, 2, 9)
    while todo and budget > 0:
        budget -= 1
        begin, angle, length, thick = todo.pop(0)
        steps = int(np.clip(length / (3.5 * unit), 3, 50))
        points = _walk(rng, begin, angle, length, steps, 0.0, jitter)
        points[1:-1] += rng.normal(0, 0.6 * unit, (steps - 1, 2))
        widths = thick * np.linspace(1, 0.35, steps) * rng.uniform(0.6, 1.4, steps)
        _stroke(plate, points, widths, np.full(steps, 255.0))
        for _ in range(integer(rng, 0, 2)):
            fork = tuple(map(float, points[integer(rng, 1, steps - 1)]))
            turn = angle + uniform(rng, 0.4, 1.2) * (1 if rng.random() < 0.5 else -1)
            todo.append(((fork[0], fork[1]), turn, length * uniform(rng, 0.2, 0.6), thick * 0.7))
    alpha = _drawn(plate, uniform(rng, 0, 0.7) * unit)
    return _tone(rng, canvas, alpha, dark=0.88, opaque=uniform(rng, 0.2, 0.9), strong=0.6)


def _hole(rng: Rng, canvas: Canvas) -> Mask | None:
    size, unit = canvas.size, canvas.unit
    count = 1 if rng.random() < 0.5 else integer(rng, 2, 10)
    radius = log_uniform(rng, 1.6, 14 if count == 1 else 6) * unit
    spread = log_uniform(rng, 8, 70) * unit
    middle = _spot(rng, canvas)
    alpha = np.zeros((size, size), np.float32)
    for _ in range(count):
        at = middle if count == 1 else (middle[0] + rng.normal(0, spread),
                                        middle[1] + rng.normal(0, spread))
        major = max(1.3 * unit, radius * uniform(rng, 0.5, 1.1))
        radii = (major, max(1.3 * unit, major * uniform(rng, 0.6, 1.0)))
        alpha = np.maximum(alpha, _ragged(rng, size, at, radii, uniform(rng, 0, np.pi),
                                          uniform(rng, 0, 0.2), uniform(rng, 1, 3) * unit))
    mask = _tone(rng, canvas, alpha, dark=0.85, opaque=uniform(rng, 0.5, 1), strong=0.6)
    if mask is not None and rng.random() < 0.5:
        _relief(canvas, alpha, uniform(rng, 0.04, 0.2))
    return mask


def _relief(canvas: Canvas, height: F32, amount: float) -> None:
    """Shade the slopes of a height field: bright towards the light, dark away from it."""
    slope_x = f32(cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3))
    slope_y = f32(cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3))
    shade = slope_x * np.float32(np.cos(canvas.light)) + slope_y * np.float32(np.sin(canvas.light))
    scale = float(np.abs(shade).max())
    if scale > 1e-5:
        canvas.image += shade[..., None] * np.float32(amount / scale)
        np.clip(canvas.image, 0, 1, out=canvas.image)


def _blob(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 2.5, 34) * canvas.unit
    radii = (radius, max(1.5 * canvas.unit, radius * uniform(rng, 0.35, 1)))
    soft = uniform(rng, 1, 1 + 0.4 * radius)
    alpha = _ragged(rng, canvas.size, _spot(rng, canvas), radii, _along(rng, canvas, 0.2),
                    uniform(rng, 0, 0.35), soft)
    return _tone(rng, canvas, alpha, dark=0.6, opaque=uniform(rng, 0, 1), strong=0.55)


def _inclusion(rng: Rng, canvas: Canvas) -> Mask | None:
    """Elongated specks and streaks in loose rows, mostly along the grain."""
    size, unit = canvas.size, canvas.unit
    angle = _along(rng, canvas, 0.8)
    count = 1 if rng.random() < 0.25 else integer(rng, 2, 14)
    x, y = _spot(rng, canvas)
    run, width = log_uniform(rng, 15, 90) * unit, log_uniform(rng, 2, 12) * unit
    alpha = np.zeros((size, size), np.float32)
    for _ in range(count):
        along, across = (0.0, 0.0) if count == 1 else (uniform(rng, -run, run),
                                                       rng.normal(0, width))
        at = (x + along * np.cos(angle) - across * np.sin(angle),
              y + along * np.sin(angle) + across * np.cos(angle))
        long = log_uniform(rng, 3, 14 if count > 1 else 60) * unit
        radii = (long, max(1.2 * unit, long * log_uniform(rng, 0.1, 0.5)))
        streak = _ragged(rng, size, at, radii, angle + rng.normal(0, 0.08), uniform(rng, 0.1, 0.5),
                         uniform(rng, 1, 4) * unit, 4)
        alpha = np.maximum(alpha, streak)
    return _tone(rng, canvas, alpha, dark=0.75, opaque=uniform(rng, 0, 0.8), strong=0.4)


def _stain(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 8, 60) * canvas.unit
    radii = (radius, radius * uniform(rng, 0.4, 1))
    alpha = _ragged(rng, canvas.size, _spot(rng, canvas), radii, uniform(rng, 0, np.pi),
                    uniform(rng, 0.1, 0.5), radius * uniform(rng, 0.2, 0.8))
    if rng.random() < 0.35:  # a dried ring: the rim is stronger than the middle
        alpha = alpha * (1 - np.float32(uniform(rng, 0.2, 0.6)) * alpha)
        alpha = alpha / np.float32(max(float(alpha.max()), 1e-3))
    return _tone(rng, canvas, alpha, dark=0.7, opaque=0.0, strong=0.35)


def _uneven(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 30, 80) * canvas.unit
    radii = (radius, radius * uniform(rng, 0.3, 0.9))
    alpha = _ragged(rng, canvas.size, _spot(rng, canvas), radii, _along(rng, canvas, 0.4),
                    uniform(rng, 0.1, 0.4), radius * uniform(rng, 0.1, 0.5))
    return _tone(rng, canvas, alpha, dark=0.55, opaque=uniform(rng, 0, 0.5), strong=0.3)


def _cover(canvas: Canvas, alpha: F32, other: F32) -> Mask | None:
    """Blend another image (cut to the box of alpha) in; None if it cannot be told apart."""
    mask = _keep(canvas, alpha)
    area = int(mask.sum())
    if area < 9 * canvas.unit:
        return None
    box = _box(alpha)
    old, inside = canvas.image[box], mask[box]
    weight = (alpha[box] * (canvas.solid[box] > 0.02))[..., None]
    new = np.clip(old + weight * (other - old), 0, 1)
    shift = float(np.abs((new - old)[inside].mean(axis=0)).mean())
    spread = abs(float(new[inside].std()) - float(old[inside].std()))
    if max(shift, 1.5 * spread) < required_change(canvas, area):
        return None
    canvas.image[box] = new
    return mask


def _patch(rng: Rng, canvas: Canvas) -> Mask | None:
    """A broad ragged area, or several, of changed brightness and texture contrast."""
    size, unit = canvas.size, canvas.unit
    angle = _along(rng, canvas, 0.7)
    radius = log_uniform(rng, 10, 60) * unit
    x, y = _spot(rng, canvas)
    alpha = np.zeros((size, size), np.float32)
    for _ in range(integer(rng, 1, 3)):
        big = radius * uniform(rng, 0.4, 1)
        at = (x + rng.normal(0, 0.8 * radius), y + rng.normal(0, 0.8 * radius))
        alpha = np.maximum(alpha, _ragged(
            rng, size, at, (big, big * uniform(rng, 0.3, 0.8)), angle + rng.normal(0, 0.3),
            uniform(rng, 0.2, 0.55), uniform(rng, 1, 0.25 * radius), uniform(rng, 3, 8)))
    mask = _keep(canvas, alpha)
    if int(mask.sum()) < 30 * unit:
        return None
    box = _box(alpha)
    inside = mask[box]
    old = canvas.image[box]
    mean = old[inside].mean(axis=0)
    need = required_change(canvas, int(inside.sum()))
    shift = log_uniform(rng, need, max(0.35, 1.5 * need)) * (-1 if rng.random() < 0.7 else 1)
    if not 0.04 < float(mean.mean()) + shift < 0.96:
        shift = -shift
    grain = noise(rng, size, size * uniform(rng, 0.2, 1))[box][..., None]
    other = mean + np.float32(shift) + np.float32(uniform(rng, 0.4, 1.5)) * (old - mean)
    other += grain * np.float32(uniform(rng, 0, 0.6) * canvas.roughness)
    return _cover(canvas, alpha, f32(other))


def _foreign(rng: Rng, canvas: Canvas) -> Mask | None:
    """A piece of another texture, or of this one turned and re-toned."""
    size, unit = canvas.size, canvas.unit
    radius = log_uniform(rng, 6, 45) * unit
    radii = (radius, radius * uniform(rng, 0.3, 1))
    alpha = _ragged(rng, size, _spot(rng, canvas), radii, uniform(rng, 0, np.pi),
                    uniform(rng, 0, 0.5), uniform(rng, 1, 4) * unit, uniform(rng, 2, 6))
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
    return _cover(canvas, alpha, other[_box(alpha)])


def _dent(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 4, 30) * canvas.unit
    radii = (radius, radius * uniform(rng, 0.4, 1))
    bowl = _ragged(rng, canvas.size, _spot(rng, canvas), radii, uniform(rng, 0, np.pi),
                   uniform(rng, 0, 0.12), radius * uniform(rng, 0.8, 1.6))
    mask = _keep(canvas, bowl)
    area = int(mask.sum())
    if area < 12 * canvas.unit:
        return None
    bowl = blur(bowl, 0.15 * radius) * (canvas.solid > 0.5)
    before = canvas.image.copy()
    need = required_change(canvas, area)
    amount = log_uniform(rng, 2.2 * need, max(0.5, 3 * need)) * (-1 if rng.random() < 0.5 else 1)
    for _ in range(3):
        _relief(canvas, bowl, amount)
        if float(np.abs(canvas.image - before).mean(axis=2)[mask].mean()) >= need:
            return mask
        canvas.image[:] = before
        amount *= 1.7
    return None


def _cut(canvas: Canvas, gone: F32) -> Mask | None:
    """Take away the part where gone is 1; None if too little, too much or not to be told apart."""
    mask = (gone * canvas.solid > 0.5) & canvas.part
    area = int(mask.sum())
    if area < 9 * canvas.unit or area > 0.6 * int(canvas.part.sum()):
        return None
    change = np.abs(canvas.image[mask].mean(axis=0) - canvas.background[mask].mean(axis=0))
    if float(change.mean()) < 1.5 * VISIBLE:
        return None
    canvas.solid *= 1 - gone
    return mask


def _chip(rng: Rng, canvas: Canvas) -> Mask | None:
    edge = _edge_spot(rng, canvas)
    if edge is None:
        return None
    radius = log_uniform(rng, 3, 20) * canvas.unit
    radii = (radius, radius * uniform(rng, 0.4, 1))
    return _cut(canvas, _ragged(rng, canvas.size, edge[:2], radii, edge[2] + np.pi / 2,
                                uniform(rng, 0.1, 0.4), 1.2, uniform(rng, 3, 6)))


def _missing(rng: Rng, canvas: Canvas) -> Mask | None:
    """A big bite, a broken-off side, or a gap that splits the part."""
    edge = _edge_spot(rng, canvas)
    if edge is None:
        return None
    size, unit = canvas.size, canvas.unit
    x, y, inwards = edge
    extent = np.sqrt(float(canvas.part.sum()))
    pick = rng.random()
    if pick < 0.4:
        radius = extent * uniform(rng, 0.15, 0.4)
        gone = _ragged(rng, size, (x, y), (radius, radius * uniform(rng, 0.5, 1)),
                       uniform(rng, 0, np.pi), uniform(rng, 0.15, 0.4), 1.2, uniform(rng, 3, 8))
        return _cut(canvas, gone)
    wobble = fractal(rng, size, uniform(rng, 3, 8), 5, 0.6) * np.float32(uniform(rng, 2, 7) * unit)
    angle = inwards + rng.normal(0, 0.4)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across_x = np.arange(size, dtype=np.float32)[None, :] - np.float32(x)
    across_y = np.arange(size, dtype=np.float32)[:, None] - np.float32(y)
    along = across_x * cos + across_y * sin
    if pick < 0.7:
        depth = extent * uniform(rng, 0.1, 0.4)
        return _cut(canvas, np.clip(np.float32(depth) - along + wobble, 0, 1))
    # A gap from the border inwards, wide at its mouth; a long one splits the part in two.
    side = across_y * cos - across_x * sin + wobble
    length, mouth = extent * uniform(rng, 0.4, 1.5), extent * uniform(rng, 0.04, 0.2)
    half = np.float32(mouth / 2) * np.clip(1 - along / np.float32(length), 0, 1)
    return _cut(canvas, np.clip(half - np.abs(side), 0, 1))


def _fray(rng: Rng, canvas: Canvas) -> Mask | None:
    """A stretch of the outline cut into by many narrow slits."""
    edge = _edge_spot(rng, canvas)
    if edge is None:
        return None
    unit = canvas.unit
    plate = np.zeros((canvas.size, canvas.size), np.uint8)
    reach, depth = log_uniform(rng, 8, 35) * unit, log_uniform(rng, 4, 18) * unit
    for _ in range(integer(rng, 6, 22)):
        offset, angle = uniform(rng, -reach, reach), edge[2] + rng.normal(0, 0.35)
        back = 4 * unit
        start = (edge[0] - np.sin(edge[2]) * offset - np.cos(angle) * back,
                 edge[1] + np.cos(edge[2]) * offset - np.sin(angle) * back)
        points = _walk(rng, start, angle, back + depth * uniform(rng, 0.3, 1), 4, 0, 0.2)
        _stroke(plate, points, np.linspace(3, 1, 4) * unit, np.full(4, 255.0))
    return _cut(canvas, _drawn(plate, 0.0))


_MAKERS: dict[str, Callable[[Rng, Canvas], Mask | None]] = {
    "scratch": _scratch, "crack": _crack, "hole": _hole, "blob": _blob, "stain": _stain,
    "foreign texture": _foreign, "chipped edge": _chip, "missing part": _missing, "dent": _dent,
    "patch": _patch, "inclusion": _inclusion, "uneven": _uneven, "fray": _fray,
}


def add_defect(rng: Rng, canvas: Canvas, kind: str) -> Mask | None:
    """Add one defect of this kind; HxW mask of it, or None where it would not be visible."""
    return _MAKERS[kind](rng, canvas)
