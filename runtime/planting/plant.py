"""Planting: a procedural defect drawn onto a picture of a good part.

The defect is drawn in a square window of the picture, scaled so that the generator (`kinds`), which
thinks in frames of a few hundred pixels, meets the size asked for; what it changed is then added to
the picture at its own resolution, so that grain and noise of the camera stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from clipsam.runtime.core.errors import ImageError, OptionError
from clipsam.runtime.planting.canvas import Mask
from clipsam.runtime.planting.foreground import find_part
from clipsam.runtime.planting.kinds import BY_NAME, KINDS, DefectKind
from clipsam.runtime.planting.textures import U8, Rng, f32
from clipsam.runtime.planting.window import (
    Drawn,
    Spot,
    Window,
    edge_spots,
    mask_length,
    open_window,
)

VISIBLE = 6.0
"""Least mean absolute change within a planted defect's mask, in levels of 255."""
SMALLEST = 4.0
"""Least size of a planted defect in pixels."""
_KINDS_TRIED = 3  # where none is asked for
_ROUNDS = 4  # to meet the size with one window
_NEAR = (0.7, 1.4)  # of the size asked for: what is accepted


@dataclass(frozen=True, eq=False)
class Planted:
    """A picture with a planted defect, and what is known about it.

    Attributes:
        image: uint8 RGB [H,W,3].
        mask: bool [H,W], True on the defect: within the part, and where a defect was allowed.
        kind: name of the `DefectKind`.
        size: length of the mask in pixels: the longer side of the smallest turned rectangle
            around it.
        change: mean absolute change within the mask, in levels of 255, at least `VISIBLE`.
    """

    image: U8
    mask: Mask
    kind: str
    size: float
    change: float


def plant(
    image: U8,
    rng: Rng | int,
    kind: str | None = None,
    size: float | None = None,
    *,
    part: Mask | None = None,
    where: Mask | None = None,
    tries: int = 12,
) -> Planted | None:
    """Draw a defect onto a good part.

    Args:
        image: uint8 RGB [H,W,3] of a good part, at least 32 pixels a side.
        rng: a generator or a seed. The same state and arguments plant the same defect.
        kind: a name in `BY_NAME`; None draws one, and others where it cannot be seen.
        size: length of the defect in image pixels, met within 0.7 to 1.4 times; None draws one
            between 3 and 40 % of the part's side.
        part: bool [H,W], where the part is; None finds it (`find_part`), which takes longer than
            all the rest: keep it where several defects are planted on one picture.
        where: bool [H,W], where a defect may lie (what a region of interest and ignored areas
            leave); None: anywhere on the part.
        tries: places to try with a kind.

    Returns None where no try was visible, or where the kind does not fit: no outline is cut on a
    surface that fills the frame, and no defect is larger than the room for it.

    Raises ImageError for an image or a mask that cannot be used, OptionError for an unknown kind
    and for a size that does not fit into the picture.
    """
    _check(image, part, where, size)
    rng = np.random.default_rng(rng)
    part = find_part(image) if part is None else part
    surface = bool(part.all())
    if kind is None:
        kinds = [_choose_kind(rng, surface) for _ in range(_KINDS_TRIED)]
    else:
        kinds = [_kind_named(kind)]
    room = part if where is None else part & where
    if not room.any():
        return None
    side = float(np.sqrt(room.sum()))
    if size is None:
        size = max(SMALLEST, side * float(np.exp(rng.uniform(np.log(0.03), np.log(0.4)))))
    for chosen in kinds:
        if chosen.needs_outline and surface:
            continue
        spots = edge_spots(part, where) if chosen.needs_outline else None
        for _ in range(tries):
            seed = int(rng.integers(2**63))
            planted = _try(image, seed, chosen, size, part, room, spots)
            if planted is not None:
                return planted
    return None


def _try(
    image: U8,
    seed: int,
    kind: DefectKind,
    size: float,
    part: Mask,
    room: Mask,
    spots: list[Spot] | None,
) -> Planted | None:
    """One place, several scales: the same generator state again in a window that fits better."""
    place = np.random.default_rng(seed)
    spot = _spot(place, room, spots)
    if spot is None:
        return None
    window_side = size * 4.0
    for _ in range(_ROUNDS):
        window = open_window(np.random.default_rng([seed, 1]), image, part, spot, window_side, kind)
        drawn = window.draw(np.random.default_rng([seed, 2]), kind)
        if drawn is None:
            return None
        ratio = drawn.length / size
        if _NEAR[0] <= ratio <= _NEAR[1]:
            return _finish(image, window, drawn, kind, part, room, size)
        window_side = float(np.clip(window_side / ratio, size * 0.9, size * 40))
    return None


def _finish(
    image: U8, window: Window, drawn: Drawn, kind: DefectKind, part: Mask, room: Mask, size: float
) -> Planted | None:
    """Add the change to the picture, and measure what came of it."""
    rows, columns = window.rows, window.columns
    old = image[rows, columns]
    inside = drawn.mask & part[rows, columns]
    if (inside & ~room[rows, columns]).any() or int(inside.sum()) < 4:
        return None
    # A soft rim that is too faint for the label ends before it is far from it.
    away = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 3)
    reach = max(3.0, 0.35 * size)
    fade = np.clip(2 - 2 * f32(away) / np.float32(reach), 0, 1)[..., None]
    new = np.clip(np.rint(f32(old) + drawn.change * fade), 0, 255).astype(np.uint8)
    shift = np.abs(new[inside].astype(np.int16) - old[inside].astype(np.int16)).mean()
    if float(shift) < VISIBLE:
        return None
    result = image.copy()
    result[rows, columns] = new
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[rows, columns] = inside
    return Planted(result, mask, kind.name, mask_length(inside), float(shift))


def _spot(rng: Rng, room: Mask, spots: list[Spot] | None) -> Spot | None:
    """A point of the outline, or a random one on the part (x, y)."""
    if spots is not None:
        return spots[int(rng.integers(len(spots)))] if spots else None
    height, width = room.shape
    for _ in range(64):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        if room[y, x]:
            return x, y
    where = np.flatnonzero(room)
    y, x = divmod(int(where[int(rng.integers(len(where)))]), width)
    return x, y


def _choose_kind(rng: Rng, surface: bool) -> DefectKind:
    kinds = [kind for kind in KINDS if not (surface and kind.needs_outline)]
    weights = np.array([kind.weight for kind in kinds])
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]


def _kind_named(name: str) -> DefectKind:
    if name not in BY_NAME:
        raise OptionError(f"There is no kind of defect {name!r}: take one of {', '.join(BY_NAME)}.")
    return BY_NAME[name]


def _check(image: U8, part: Mask | None, where: Mask | None, size: float | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError("A defect is planted on an image HxWx3 of uint8 RGB.")
    if min(image.shape[:2]) < 32:
        raise ImageError(
            f"An image of {image.shape[1]}x{image.shape[0]} pixels is too small to plant a defect "
            "on: 32 pixels a side are needed."
        )
    for name, mask in (("part", part), ("where", where)):
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != image.shape[:2]):
            raise ImageError(f"`{name}` must be a bool mask of the image's height and width.")
    if size is not None and not SMALLEST <= size <= max(image.shape[:2]):
        raise OptionError(
            f"A planted defect of {size:g} pixels does not fit: give a size between "
            f"{SMALLEST:g} and the image's longer side, {max(image.shape[:2])}."
        )
