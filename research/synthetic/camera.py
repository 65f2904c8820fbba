"""From a finished part to bytes: background and shadow, light, lens, sensor and file.

A `Shot` is drawn before the defects, because how much contrast a defect needs depends on the
light it will get and on the sensor's noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from clipsam.runtime.planting.canvas import Canvas
from clipsam.runtime.planting.textures import (
    F32,
    U8,
    Rng,
    blur,
    f32,
    fractal,
    integer,
    log_uniform,
    plane,
    uniform,
)


@dataclass(frozen=True)
class Shot:
    """Light (gain, float32 HxW) and camera: blur sigma in pixels, noise deviation (1 = white).

    `grain` is the noise's own blur (sigma in pixels); `stretch` are the two quantiles that a hard
    exposure or an automatic contrast makes black and white, None for a gentle exposure.
    """

    gain: F32
    blur: float
    contrast: float
    ceiling: float
    offset: float
    noise: float
    grain: float
    stretch: tuple[float, float] | None
    gamma: float
    quality: int | None


def draw_shot(rng: Rng, size: int) -> Shot:
    """Light and camera of one picture."""
    lens = uniform(rng, 0.3, 1.1) * size / 192 if rng.random() < 0.6 else 0.0
    return Shot(
        gain=_light(rng, size),
        blur=lens,
        contrast=uniform(rng, 0.8, 1.3),
        # Now and then the bright areas burn out, as they do in real photographs.
        ceiling=0.96 if rng.random() < 0.85 else 1.1,
        offset=float(rng.normal(0, 0.04)),
        noise=log_uniform(rng, 0.003, 0.07) if rng.random() < 0.7 else 0.0,
        grain=uniform(rng, 0.3, 0.9) * size / 192 if rng.random() < 0.4 else 0.0,
        stretch=_stretch(rng) if rng.random() < 0.25 else None,
        gamma=uniform(rng, 0.8, 1.25),
        quality=integer(rng, 35, 95) if rng.random() < 0.35 else None,
    )


def _stretch(rng: Rng) -> tuple[float, float]:
    low = uniform(rng, 0, 0.06) if rng.random() < 0.6 else 0.0
    return low, 1 - (uniform(rng, 0, 0.2) if rng.random() < 0.7 else 0.0)


def _light(rng: Rng, size: int) -> F32:
    """Gradient, vignette, soft shadow, specular band: gain around 1, size x size."""
    coarse = 48  # light is smooth: compute it small
    gain = np.ones((coarse, coarse), np.float32)
    u, v = plane(coarse, uniform(rng, 0, 2 * np.pi))
    if rng.random() < 0.7:
        gain += u * np.float32(uniform(rng, 0, 0.7))
    if rng.random() < 0.4:
        x, y = u - np.float32(rng.normal(0, 0.15)), v - np.float32(rng.normal(0, 0.15))
        gain -= (x * x + y * y) * np.float32(uniform(rng, 0.2, 1.2))
    if rng.random() < 0.2:
        edge = u - np.float32(uniform(rng, -0.4, 0.4))
        gain *= 1 - np.float32(uniform(rng, 0.1, 0.4)) / (1 + np.exp(-edge * uniform(rng, 15, 60)))
    if rng.random() < 0.2:
        width = uniform(rng, 0.04, 0.25)
        band = np.exp(-(((v - uniform(rng, -0.4, 0.4)) / width) ** 2))
        gain += f32(band) * np.float32(uniform(rng, 0.1, 0.5))
    if rng.random() < 0.35:
        gain += fractal(rng, coarse, 2, 2, 0.5) * np.float32(uniform(rng, 0.02, 0.1))
    gain = np.clip(gain, 0.45, 1.5)
    return f32(cv2.resize(gain, (size, size), interpolation=cv2.INTER_LINEAR))


def compose(rng: Rng, canvas: Canvas) -> F32:
    """The part on its background with a bevelled border and a shadow: float32 HxWxC."""
    if canvas.surface:
        return canvas.image
    solid, unit = canvas.solid, canvas.unit
    front, back = canvas.image, canvas.background
    towards = (float(np.cos(canvas.light)), float(np.sin(canvas.light)))
    wide = blur(solid, uniform(rng, 2, 9) * unit)
    if rng.random() < 0.75:
        shift = uniform(rng, 0, 7) * unit
        move = np.array([[1, 0, -shift * towards[0]], [0, 1, -shift * towards[1]]], np.float32)
        shadow = f32(cv2.warpAffine(wide, move, (canvas.size, canvas.size)))
        back = back * (1 - np.float32(uniform(rng, 0.1, 0.65)) * shadow)[..., None]
    if rng.random() < 0.7:
        bevel = blur(solid, uniform(rng, 0.8, 5) * unit)
        slope = f32(cv2.Sobel(bevel, cv2.CV_32F, 1, 0)) * np.float32(towards[0])
        slope += f32(cv2.Sobel(bevel, cv2.CV_32F, 0, 1)) * np.float32(towards[1])
        peak = max(float(np.abs(slope).max()), 1e-4)
        shade = slope * np.float32(uniform(rng, -0.3, 0.3) / peak)
        shade += (wide - 1) * np.float32(uniform(rng, 0, 0.35))  # rounded: darker near the border
        front = front + shade[..., None]
    return f32(np.clip(back + (front - back) * solid[..., None], 0, 1))


def _expose(shot: Shot, image: F32) -> F32:
    """Stretch around the mean without clipping what is dark or bright, or hard, with clipping."""
    if shot.stretch is not None:
        low, high = (float(q) for q in np.quantile(image[::4, ::4], shot.stretch))
        span = max(high - low, 0.2)
        return f32((image - np.float32((low + high - span) / 2)) / np.float32(span))
    mean = float(image.mean())
    target = min(max(mean + shot.offset, 0.1), 0.78)
    low, high = (float(q) for q in np.quantile(image[::4, ::4], (0.02, 0.98)))
    room = min(
        (target - 0.01) / (mean - low + 1e-3), (shot.ceiling - target) / (high - mean + 1e-3)
    )
    image = (image - np.float32(mean)) * np.float32(min(shot.contrast, max(0.5, room)))
    return f32(image + np.float32(target))


def photograph(rng: Rng, shot: Shot, image: F32) -> U8:
    """Light and camera applied: float32 HxWxC in, uint8 HxWx3 out."""
    size, channels = image.shape[0], image.shape[2]
    image = blur(image * shot.gain[..., None], shot.blur)
    if shot.noise:
        shape = image.shape if channels == 1 or rng.random() < 0.5 else (size, size, 1)
        grain = rng.standard_normal(shape, dtype=np.float32)
        if shot.grain >= 0.3:
            grain = f32(cv2.GaussianBlur(grain, (0, 0), shot.grain)).reshape(shape)
            grain *= np.float32(1 / max(float(grain.std()), 1e-3))
        image = image + grain * np.float32(shot.noise)
    image = _expose(shot, image)
    table = np.round(np.power(np.linspace(0, 1, 256), shot.gamma) * 255).astype(np.uint8)
    photo = np.clip(image * np.float32(255), 0, 255).astype(np.uint8).reshape(size, size, channels)
    photo = table[photo]
    if shot.quality is not None:
        done, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, shot.quality])
        if done:
            photo = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)
            photo = photo.reshape(size, size, channels)
    return np.array(np.broadcast_to(photo, (size, size, 3)))
