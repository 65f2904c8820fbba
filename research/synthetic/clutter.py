"""What else is in the picture and is no defect: tray edges, neighbours, crumbs."""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.research.synthetic.outlines import outline, polygon
from clipsam.runtime.planting.textures import (
    F32,
    Rng,
    blur,
    choose,
    f32,
    integer,
    log_uniform,
    plane,
    uniform,
)


def add_clutter(rng: Rng, image: F32, background: F32, solid: F32) -> None:
    """Paint onto `background` (float32 HxWxC) what lies around the part that `image` shows.

    `solid` is the part's coverage, HxW; nothing is painted where it would touch the part.
    """
    size = background.shape[0]
    unit = size / 192
    room = f32(cv2.dilate(solid, np.ones((int(9 * unit), int(9 * unit)), np.uint8))) < 0.1
    if rng.random() < 0.25:
        _sheen(rng, background)
    if rng.random() < 0.3:
        _tray_edge(rng, background)
    if rng.random() < 0.2:
        plate = np.zeros((size, size), np.uint8)
        for _ in range(integer(rng, 1, 2)):
            corner = (integer(rng, 0, 1) * size, integer(rng, 0, 1) * size)
            at = (
                corner[0] + rng.normal(0, 0.15) * size,
                corner[1] + rng.normal(0, 0.15) * size,
            )
            shape = choose(rng, ("blob", "disc", "rounded", "strip", "polygon"))
            radius = size * uniform(rng, 0.1, 0.3)
            plate = np.maximum(
                plate, polygon(size, outline(rng, shape, at, radius, uniform(rng, 0, 6.3)))
            )
        _blend(background, f32(plate) * (room / np.float32(255)), np.roll(image, size // 3, axis=0))
    if rng.random() < 0.25:
        plate = np.zeros((size, size), np.uint8)
        for _ in range(integer(rng, 2, 16)):
            at = (integer(rng, 0, size - 1), integer(rng, 0, size - 1))
            radius = log_uniform(rng, 0.6, 2.6) * unit
            axes = (max(1, round(radius)), max(1, round(radius * uniform(rng, 0.5, 1))))
            cv2.ellipse(plate, at, axes, uniform(rng, 0, 180), 0, 360, (255.0,), -1, cv2.LINE_AA)
        tone = image.mean(axis=(0, 1)) * np.float32(uniform(rng, 0.5, 1.1))
        _blend(background, f32(plate) * (room / np.float32(255)), tone)


def _tray_edge(rng: Rng, background: F32) -> None:
    """One to five parallel bands and lines along a side of the frame; polished ones shine."""
    size = background.shape[0]
    turns, slant = integer(rng, 0, 3), float(rng.normal(0, 0.03))
    reach = log_uniform(rng, 0.015, 0.15) * size
    _blend(background, border_band(rng, size, turns, slant, 0.0, reach), _tone(rng, background))
    for _ in range(integer(rng, 0, 4)):
        width = log_uniform(rng, 0.004, 0.04) * size
        start = uniform(rng, 0, 1.3) * reach
        line = border_band(rng, size, turns, slant + rng.normal(0, 0.005), start, start + width)
        if rng.random() < 0.5:
            tone = f32(rng.uniform(0.75, 1.0, background.shape[2]))
            line *= _fading(rng, size, turns)
        else:
            tone = _tone(rng, background)
        _blend(background, line, tone)


def _sheen(rng: Rng, background: F32) -> None:
    """A soft reflection on what lies under the part, not on the part."""
    size = background.shape[0]
    u, v = plane(size, uniform(rng, 0, 2 * np.pi))
    u, v = u - np.float32(rng.normal(0, 0.35)), v - np.float32(rng.normal(0, 0.35))
    wide, narrow = uniform(rng, 0.1, 0.6), uniform(rng, 0.1, 0.6)
    glow = np.exp(-((u / np.float32(wide)) ** 2) - (v / np.float32(narrow)) ** 2)
    background += f32(glow)[..., None] * np.float32(uniform(rng, -0.15, 0.35))
    np.clip(background, 0, 1, out=background)


def _fading(rng: Rng, size: int, turns: int) -> F32:
    """A highlight's strength along a side, size x size: strong somewhere, fading to both ends."""
    along = np.linspace(0, 1, size, dtype=np.float32) - np.float32(uniform(rng, -0.2, 1.2))
    strength = f32(np.exp(-((along / np.float32(log_uniform(rng, 0.15, 3))) ** 2)))
    return np.ascontiguousarray(np.rot90(np.tile(strength, (size, 1)), turns))


def border_band(rng: Rng, size: int, turns: int, slant: float, start: float, end: float) -> F32:
    """Coverage, size x size, of a straight band along the side `turns` of the frame, from `start`
    to `end` pixels away from it."""
    axis = np.arange(size, dtype=np.float32)
    distance = axis[:, None] + np.float32(slant) * axis[None, :]
    alpha = np.clip(np.float32(end) - distance, 0, 1)
    if start > 0:
        alpha = alpha * np.clip(distance - np.float32(start - 1), 0, 1)
    return np.ascontiguousarray(np.rot90(blur(f32(alpha), uniform(rng, 0, 2)), turns))


def _tone(rng: Rng, background: F32) -> F32:
    """A tone unlike the background's own."""
    base = background.mean(axis=(0, 1))
    tone = f32(rng.uniform(0.02, 0.98, len(base)) if rng.random() < 0.4 else base)
    shift = np.float32(uniform(rng, 0.1, 0.5) * (-1 if rng.random() < 0.6 else 1))
    return f32(np.clip(tone + shift, 0, 1))


def _blend(background: F32, alpha: F32, other: F32) -> None:
    background += alpha[..., None] * (other - background)
