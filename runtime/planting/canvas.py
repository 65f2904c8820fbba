"""The canvas a part is made on, and the ways a defect can change it.

Every change either becomes visible (`required_change`) and returns its HxW label, or leaves the
canvas as it was and returns None. All lengths in pixels are meant for a frame of 192 pixels and
multiplied by ``canvas.unit``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.planting.textures import F32, Rng, f32, integer, log_uniform, uniform

Mask = NDArray[np.bool_]

LABEL_ALPHA = 0.3
"""A soft defect is labelled where at least this share of its full effect is present."""
VISIBLE = 0.03
"""Smallest mean absolute change (1 = full scale) over a large defect on a smooth surface."""


@dataclass
class Canvas:
    """A part while it is being made.

    Attributes:
        image: float32 HxWxC, C = 1 or 3, 1.0 = white: the look of the part's surface.
        background: the same for what lies behind it.
        part: HxW, True within the outline of the undamaged part.
        solid: float32 HxW, coverage by what is left of the part.
        surface: whether the part fills the frame, so that it has no outline.
        several: whether the picture shows many small parts instead of one.
        axis: direction of the texture's grain in radians.
        light: direction the light comes from in radians, in the image plane.
        roughness: standard deviation of the texture.
        gain: float32 HxW, the light the scene will get; noise: that of the sensor. A defect
            needs more contrast where it is dark or noisy.
        magnify: factor on all lengths in pixels, for a defect that is to have a certain size.
    """

    image: F32
    background: F32
    part: Mask
    solid: F32
    surface: bool
    several: bool
    axis: float
    light: float
    roughness: float
    gain: F32
    noise: float
    magnify: float = 1.0

    @property
    def size(self) -> int:
        return int(self.image.shape[0])

    @property
    def unit(self) -> float:
        return self.size / 192.0 * self.magnify


def required_change(canvas: Canvas, mask: Mask) -> float:
    """The mean absolute change a defect with this mask needs to be seen on this part."""
    side = np.sqrt(max(int(mask.sum()), 1)) / canvas.unit
    gain = float(canvas.gain[mask].mean()) if mask.any() else 1.0
    least = max(VISIBLE, 0.75 * canvas.roughness + 0.5 * canvas.noise)
    return float(min(0.3, least * (1 + 8 / (side + 2)) / max(0.3, gain)))


def random_spot(rng: Rng, canvas: Canvas) -> tuple[float, float]:
    """A random point (x, y) on the solid part."""
    size = canvas.size
    point = (size / 2, size / 2)
    for _ in range(24):
        point = (uniform(rng, 0.02, 0.98) * size, uniform(rng, 0.02, 0.98) * size)
        if canvas.solid[int(point[1]), int(point[0])] > 0.5:
            break
    return point


def edge_spot(rng: Rng, canvas: Canvas) -> tuple[float, float, float] | None:
    """A point (x, y) on the outline that lies in the frame, and the direction inwards."""
    contours, _ = cv2.findContours(
        canvas.part.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    margin = 3 * canvas.unit
    for _ in range(8 if contours else 0):
        contour = contours[integer(rng, 0, len(contours) - 1)][:, 0, :]
        x, y = (float(value) for value in contour[integer(rng, 0, len(contour) - 1)])
        if min(x, y) < margin or max(x, y) > canvas.size - 1 - margin:
            continue
        reach = max(2, round(6 * canvas.unit))
        left, top = max(0, int(x) - reach), max(0, int(y) - reach)
        window = canvas.part[top : int(y) + reach + 1, left : int(x) + reach + 1]
        rows, columns = np.nonzero(window)
        if len(rows):
            inwards = np.arctan2(rows.mean() + top - y, columns.mean() + left - x)
            return x, y, float(inwards)
    return None


def along_grain(rng: Rng, canvas: Canvas, chance: float = 0.6) -> float:
    """An angle: the grain of the texture (or across it) with some spread, or anything."""
    pick = rng.random()
    if pick < chance:
        return canvas.axis + np.pi / 2 + uniform(rng, -0.06, 0.06)
    if pick < chance + 0.1:
        return canvas.axis + uniform(rng, -0.1, 0.1)
    return uniform(rng, 0, np.pi)


def box_of(alpha: F32) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around everything that is not 0."""
    x, y, width, height = cv2.boundingRect((alpha > 0.004).astype(np.uint8))
    return slice(y, y + height), slice(x, x + width)


def visible_mask(canvas: Canvas, alpha: F32) -> Mask:
    """The label of a defect with this coverage: HxW, strong enough and on the part."""
    return (alpha > LABEL_ALPHA) & (canvas.solid > 0.5) & canvas.part


def change_tone(
    rng: Rng,
    canvas: Canvas,
    alpha: F32,
    *,
    dark: float = 0.6,
    opaque: float = 0.3,
    strong: float = 0.5,
    smallest: float = 9,
) -> Mask | None:
    """Shift the tone under alpha (dark = chance of a darker one); None if it cannot be seen, or has
    fewer than `smallest` square units."""
    mask = visible_mask(canvas, alpha)
    if int(mask.sum()) < max(5, smallest * canvas.unit**2):
        return None
    box = box_of(alpha)
    old, inside = canvas.image[box], mask[box]
    weight = (alpha[box] * (canvas.solid[box] > 0.02))[..., None]
    channels = old.shape[2]
    tint = np.ones(channels, np.float32)
    if channels == 3:
        tint += rng.normal(0, 0.35 if rng.random() < 0.5 else 0.06, 3).astype(np.float32)
    need = required_change(canvas, mask)
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


def cover(canvas: Canvas, alpha: F32, other: F32) -> Mask | None:
    """Blend another image (cut to the box of alpha) in; None if it cannot be told apart."""
    mask = visible_mask(canvas, alpha)
    if int(mask.sum()) < 9 * canvas.unit:
        return None
    box = box_of(alpha)
    old, inside = canvas.image[box], mask[box]
    weight = (alpha[box] * (canvas.solid[box] > 0.02))[..., None]
    new = np.clip(old + weight * (other - old), 0, 1)
    shift = float(np.abs((new - old)[inside].mean(axis=0)).mean())
    spread = abs(float(new[inside].std()) - float(old[inside].std()))
    if max(shift, 1.5 * spread) < required_change(canvas, mask):
        return None
    canvas.image[box] = new
    return mask


def cut(canvas: Canvas, gone: F32) -> Mask | None:
    """Take away the part where gone is 1; None if too little, too much or not to be told apart."""
    mask = (gone * canvas.solid > 0.5) & canvas.part
    area = int(mask.sum())
    if area < 9 * canvas.unit or area > 0.6 * int(canvas.part.sum()):
        return None
    change = np.abs(canvas.image[mask].mean(axis=0) - canvas.background[mask].mean(axis=0))
    if float(change.mean()) * float(canvas.gain[mask].mean()) < 2 * VISIBLE:
        return None
    canvas.solid *= 1 - gone
    return mask


def relief(canvas: Canvas, height: F32, amount: float) -> None:
    """Shade the slopes of a height field: bright towards the light, dark away from it."""
    slope_x = f32(cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3))
    slope_y = f32(cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3))
    shade = slope_x * np.float32(np.cos(canvas.light)) + slope_y * np.float32(np.sin(canvas.light))
    scale = float(np.abs(shade).max())
    if scale > 1e-5:
        canvas.image += shade[..., None] * np.float32(amount / scale)
        np.clip(canvas.image, 0, 1, out=canvas.image)
