"""A square window of a picture as a `Canvas` to draw a defect on, and what that changes there."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from clipsam.runtime.planting.behind import behind
from clipsam.runtime.planting.canvas import Canvas, Mask
from clipsam.runtime.planting.kinds import DefectKind
from clipsam.runtime.planting.textures import F32, U8, Rng, blur, f32, uniform

Spot = tuple[int, int]  # x, y in image pixels
_SIDES = (128, 384)  # of the canvas, pixels, however large the window is
_MOST_MAGNIFIED = 6.0
_LABELLED = 0.4  # share of an image pixel that the defect covers, to be labelled
_OUTLINE_SIDE = 512  # of the reduced mask that outlines are looked for in


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a defect changes in the window's part of the picture, [h,w] image pixels.

    Attributes:
        change: float32 [h,w,3], in levels of 255.
        mask: bool [h,w].
        length: of the mask, in image pixels, as far as it was drawn.
    """

    change: F32
    mask: Mask
    length: float


@dataclass(frozen=True, eq=False)
class Window:
    """A square of `side` image pixels, of which `rows` and `columns` lie in the picture.

    `scale` is canvas pixels an image pixel, `top` and `left` where the picture begins on the
    canvas, `height` and `width` how much of it is picture.
    """

    rows: slice
    columns: slice
    scale: float
    top: int
    left: int
    height: int
    width: int
    canvas: Canvas
    cuts: bool

    def draw(self, rng: Rng, kind: DefectKind) -> Drawn | None:
        """Draw one defect; None where it would not be seen, or runs out of the window."""
        canvas = self.canvas
        before = canvas.image.copy()
        mask = kind.draw(rng, canvas)
        if mask is None or self._runs_out(mask):
            return None
        change = _opened(rng, canvas, before) if self.cuts else canvas.image - before
        # No camera draws an edge sharper than its lens, and the picture's own scale has one, too.
        change = blur(change, uniform(rng, 0.4, 0.9) * max(1.0, self.scale))
        shape = (self.columns.stop - self.columns.start, self.rows.stop - self.rows.start)
        change, covered = self._cut_out(change), self._cut_out(f32(mask))
        how = cv2.INTER_AREA if self.scale > 1 else cv2.INTER_LINEAR
        inside = np.asarray(cv2.resize(covered, shape, interpolation=how) > _LABELLED, np.bool_)
        if not inside.any():
            return None
        change = f32(cv2.resize(change, shape, interpolation=how)).reshape(*shape[::-1], -1)
        change = np.repeat(change, 3 // change.shape[2], axis=2) * 255
        return Drawn(change, inside, mask_length(inside))

    def _cut_out(self, field: F32) -> F32:
        """The canvas's share of picture."""
        return field[self.top : self.top + self.height, self.left : self.left + self.width]

    def _runs_out(self, mask: Mask) -> bool:
        """Whether the defect is cut off by the window where the part goes on."""
        edge, size = 2, self.canvas.size
        cut = [
            (self.top == 0, mask[:edge]),
            (self.top + self.height >= size, mask[-edge:]),
            (self.left == 0, mask[:, :edge]),
            (self.left + self.width >= size, mask[:, -edge:]),
        ]
        return any(inner and bool(rim.any()) for inner, rim in cut)


def open_window(
    rng: Rng, image: U8, part: Mask, spot: Spot, side: float, kind: DefectKind
) -> Window:
    """The window of about `side` image pixels around a spot, as a canvas for this kind.

    `image` is uint8 RGB [H,W,3], `part` bool [H,W]. Where the picture is smaller than the window
    that the defect would need, the defect is magnified instead.
    """
    full_height, full_width = image.shape[:2]
    # A hair larger than the picture, so that what covers all of it is not cut off by the window.
    most = 1.1 * max(full_height, full_width)
    square = int(np.clip(round(side), 16, most))
    size = int(np.clip(square, *_SIDES))
    scale = size / square
    # Outlines are cut in the middle of the window; elsewhere the generator draws at random spots.
    wander = 0.05 if kind.needs_outline else 0.2
    x0 = round(spot[0] - square / 2 + uniform(rng, -wander, wander) * square)
    y0 = round(spot[1] - square / 2 + uniform(rng, -wander, wander) * square)
    columns = slice(max(0, x0), min(full_width, x0 + square))
    rows = slice(max(0, y0), min(full_height, y0 + square))
    left, top = round((columns.start - x0) * scale), round((rows.start - y0) * scale)
    width = max(2, min(size - left, round((columns.stop - columns.start) * scale)))
    height = max(2, min(size - top, round((rows.stop - rows.start) * scale)))

    crop = image[rows, columns]
    gray = bool((crop[..., :1] == crop).all())
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    look = cv2.resize(crop[..., :1] if gray else crop, (width, height), interpolation=how)
    look = np.asarray(look, np.uint8).reshape(height, width, -1)
    rest = (top, size - top - height, left, size - left - width)
    front = f32(cv2.copyMakeBorder(look, *rest, cv2.BORDER_REFLECT) / np.float32(255))
    front = front.reshape(size, size, -1)
    shown = f32(cv2.resize(f32(part[rows, columns]), (width, height), interpolation=cv2.INTER_AREA))
    cover = f32(cv2.copyMakeBorder(shown, *rest, cv2.BORDER_CONSTANT, value=0.0))
    inside = cover > 0.5
    canvas = _canvas(rng, front, inside, kind, part_is_all=bool(part.all()))
    canvas.magnify = float(np.clip(side / most, 1.0, _MOST_MAGNIFIED))
    return Window(rows, columns, scale, top, left, height, width, canvas, kind.needs_outline)


def mask_length(mask: Mask) -> float:
    """Longer side of the smallest turned rectangle around a mask that is not empty, pixels."""
    hull = cv2.convexHull(cv2.findNonZero(mask.astype(np.uint8)))
    return float(max(cv2.minAreaRect(hull)[1])) + 1


def edge_spots(part: Mask, where: Mask | None) -> list[Spot]:
    """Points (x, y) of the part's outline within the frame, where a defect is allowed."""
    height, width = part.shape
    scale = min(1.0, _OUTLINE_SIDE / max(height, width))
    small_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(part.astype(np.uint8), small_size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(small, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    points = [(x, y) for contour in contours for x, y in contour[:, 0, :].tolist()]
    spots = []
    for x, y in points:
        if not (2 <= x < small_size[0] - 2 and 2 <= y < small_size[1] - 2):
            continue
        at = (min(width - 1, int((x + 0.5) / scale)), min(height - 1, int((y + 0.5) / scale)))
        if where is None or where[at[1], at[0]]:
            spots.append(at)
    return spots


def _canvas(rng: Rng, front: F32, inside: Mask, kind: DefectKind, part_is_all: bool) -> Canvas:
    size = front.shape[0]
    solid = f32(inside)
    background = front
    if kind.needs_outline:
        beyond = cv2.dilate(inside.astype(np.uint8), _margin(size)) > 0
        background = behind(rng, front, np.asarray(beyond, np.bool_))
        solid = np.ones((size, size), np.float32)
    luma = front.mean(axis=2)
    roughness, noise = _grain(luma, inside)
    return Canvas(
        image=front.copy(),
        background=background,
        part=inside,
        solid=solid,
        surface=part_is_all,
        several=False,
        axis=_axis(rng, luma, inside),
        light=uniform(rng, 0, 2 * np.pi),
        roughness=roughness,
        gain=np.ones((size, size), np.float32),
        noise=noise,
    )


def _margin(size: int) -> U8:
    """How far the estimate of an outline may be off on a canvas: a kernel to dilate with."""
    wide = 2 * max(1, round(size / 64)) + 1
    return np.ones((wide, wide), np.uint8)


def _grain(luma: F32, inside: Mask) -> tuple[float, float]:
    """Texture's and sensor's deviation on the part, robustly: marks and edges do not count."""
    at = inside if inside.any() else np.ones_like(inside)
    coarse = np.abs(luma - blur(luma, luma.shape[0] / 40))[at]
    fine = np.abs(luma - blur(luma, 0.8))[at]
    return 1.48 * float(np.median(coarse)), 1.48 * float(np.median(fine))


def _axis(rng: Rng, luma: F32, inside: Mask) -> float:
    """Across the grain of the texture (radians), from the gradients; at random where none shows."""
    x, y = (cv2.Sobel(blur(luma, 1.0), cv2.CV_32F, *order, ksize=3) for order in ((1, 0), (0, 1)))
    core = cv2.erode(inside.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    if not core.any():
        return uniform(rng, 0, np.pi)
    xx, yy, xy = (float(product[core].mean()) for product in (x * x, y * y, x * y))
    strength = np.hypot(xx - yy, 2 * xy) / (xx + yy + 1e-9)
    return 0.5 * float(np.arctan2(2 * xy, xx - yy)) if strength > 0.25 else uniform(rng, 0, np.pi)


def _opened(rng: Rng, canvas: Canvas, before: F32) -> F32:
    """The change where a piece is gone: what lies behind in shadow, the broken face shaded."""
    gone = f32(1 - canvas.solid)
    # No rim may stay where the part is wider than the estimate of its outline.
    spread = f32(cv2.dilate(gone * canvas.part, _margin(canvas.size)))
    gone = np.where(canvas.part, gone, np.maximum(gone, spread))
    unit = canvas.unit
    near = blur(f32(canvas.part) * canvas.solid, uniform(rng, 1.5, 5) * unit)
    reach = uniform(rng, 0, 4) * unit
    move = np.array(
        [[1, 0, -reach * np.cos(canvas.light)], [0, 1, -reach * np.sin(canvas.light)]], np.float32
    )
    shadow = f32(cv2.warpAffine(near, move, gone.shape[::-1], borderMode=cv2.BORDER_REPLICATE))
    back = canvas.background * (1 - np.float32(uniform(rng, 0.1, 0.55)) * shadow[..., None])
    face = blur(gone, uniform(rng, 0.7, 2.5) * unit) * (1 - gone) * f32(canvas.part)
    front = before * (1 + np.float32(uniform(rng, -0.5, 0.25)) * face[..., None])
    after = front + (back - front) * gone[..., None]
    return f32(np.clip(after, 0, 1) - before)
