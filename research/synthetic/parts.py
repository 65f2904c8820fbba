"""What belongs to a part and is no defect: its silhouette, holes, printed and engraved marks."""

from __future__ import annotations

import cv2
import numpy as np

from clipsam.research.synthetic.outlines import outline, polygon
from clipsam.runtime.planting.canvas import Canvas, Mask, relief
from clipsam.runtime.planting.shapes import stroke, walk
from clipsam.runtime.planting.textures import (
    F32,
    U8,
    Rng,
    blur,
    choose,
    f32,
    fractal,
    integer,
    log_uniform,
    uniform,
)


def silhouette(rng: Rng, size: int, shape: str) -> tuple[F32, list[tuple[str, Mask]]]:
    """Coverage of the part, size x size, and the parts and through-holes it consists of."""
    things: list[tuple[str, Mask]] = []
    if shape == "many":
        side = integer(rng, 2, 5)
        kind = choose(rng, ("capsule", "disc", "blob", "rounded", "ring", "hexagon"))
        cover = np.zeros((size, size), np.uint8)
        angle, pitch = uniform(rng, 0, 3.2), size / side
        scatter = 0.0 if rng.random() < 0.4 else 0.08 * pitch
        radius = pitch * uniform(rng, 0.3, 0.44)
        for index in range(side * side):
            if rng.random() < 0.12:
                continue
            at = (
                (index % side + 0.5) * pitch + rng.normal(0, scatter),
                (index // side + 0.5) * pitch + rng.normal(0, scatter),
            )
            turn = angle if scatter == 0 else uniform(rng, 0, 3.2)
            one = polygon(size, outline(rng, kind, at, radius, turn))
            if kind == "ring":
                middle = (int(at[0]), int(at[1]))
                cv2.circle(one, middle, int(radius * 0.4), (0.0,), -1, cv2.LINE_AA)
            if (one > 127).sum() > 9:
                things.append(("part", one > 127))
            cover = np.maximum(cover, one)
        return f32(cover) * np.float32(1 / 255), things
    radius = size * uniform(rng, 0.3, 0.48) * (1.15 if shape in ("strip", "screw", "plate") else 1)
    centre = (size * uniform(rng, 0.42, 0.58), size * uniform(rng, 0.42, 0.58))
    cover = polygon(size, outline(rng, shape, centre, radius, uniform(rng, 0, 6.3)))
    if shape == "ring" or (shape in ("gear", "hexagon") and rng.random() < 0.7):
        inner = max(2, round(radius * uniform(rng, 0.25, 0.65)))
        bore = np.zeros_like(cover)
        cv2.circle(bore, (round(centre[0]), round(centre[1])), inner, (255.0,), -1, cv2.LINE_AA)
        cover = np.minimum(cover, 255 - bore)
        things.append(("drilled hole", bore > 127))
    things.insert(0, ("part", cover > 127))
    return f32(cover) * np.float32(1 / 255), things


def mould(rng: Rng, canvas: Canvas) -> None:
    """Lumps and a rounded rim, shaded by the light: dough, castings, nuts, anything not flat."""
    lumps = fractal(
        rng,
        canvas.size,
        log_uniform(rng, 3, 30),
        integer(rng, 2, 5),
        uniform(rng, 0.4, 0.75),
    )
    rim = blur(canvas.solid, log_uniform(rng, 4, 30) * canvas.unit)
    inside = canvas.solid > 0.5
    before = float(canvas.image[inside].std()) if inside.any() else 0.0
    height = blur(lumps, uniform(rng, 0.4, 2.0) * canvas.unit)
    relief(canvas, height + rim * np.float32(uniform(rng, 0, 12)), log_uniform(rng, 0.05, 0.4))
    if inside.any():  # a defect must stand out from the lumps, too
        canvas.roughness += max(0.0, float(canvas.image[inside].std()) - before)


def _print_text(rng: Rng, plate: U8, at: tuple[float, float], angle: float, unit: float) -> None:
    """One to three lines of letters and digits around (x, y), turned by angle (radians)."""
    size = plate.shape[0]
    scale, face = log_uniform(rng, 0.35, 1.8) * unit, integer(rng, 0, 6)
    thick = max(1, round(uniform(rng, 0.8, 2.6) * unit))
    lines = 1 if rng.random() < 0.7 else integer(rng, 2, 3)
    flat = np.zeros_like(plate)
    for line in range(lines):
        letters = "".join(
            choose(rng, tuple("ABCDEFGHKLMNPRSTUVXYZ0123456789-"))
            for _ in range(integer(rng, 1, 8))
        )
        (width, height), _ = cv2.getTextSize(letters, face, scale, thick)
        shift = (line - (lines - 1) / 2) * 1.6 * height
        left, bottom = round(size / 2 - width / 2), round(size / 2 + height / 2 + shift)
        cv2.putText(flat, letters, (left, bottom), face, scale, (255.0,), thick, cv2.LINE_AA)
    if rng.random() < 0.3:
        angle += float(rng.normal(0, 0.5))
    move = cv2.getRotationMatrix2D((size / 2, size / 2), -float(np.degrees(angle)), 1.0)
    move[:, 2] += np.asarray(at) - size / 2
    np.maximum(plate, cv2.warpAffine(flat, move, (size, size)), out=plate)


def add_mark(rng: Rng, canvas: Canvas, kind: str) -> list[tuple[str, Mask]]:
    """Print, drill or engrave something that belongs to the part."""
    size, unit = canvas.size, canvas.unit
    plate = np.zeros((size, size), np.uint8)
    rows, columns = np.nonzero(canvas.part[::4, ::4])
    if len(rows) < 20:
        return []
    centre = (float(columns.mean()) * 4, float(rows.mean()) * 4)
    extent = 4 * float(max(np.ptp(rows), np.ptp(columns)))
    x, y = centre[0] + rng.normal(0, 0.12) * extent, centre[1] + rng.normal(0, 0.12) * extent
    thick = max(1, round(uniform(rng, 0.8, 2.6) * unit))
    name = {"text": "printed text", "seam": "seam"}.get(kind, "mark")
    if kind == "text":
        _print_text(rng, plate, (x, y), canvas.axis if rng.random() < 0.3 else 0.0, unit)
    elif kind == "seam":
        angle = canvas.axis + (np.pi / 2 if rng.random() < 0.5 else 0)
        gap, reach = uniform(rng, 10, 50) * unit, 2 * size
        for offset in (0.0,) if rng.random() < 0.6 else (-gap, gap):
            mid = (x - np.sin(angle) * offset, y + np.cos(angle) * offset)
            ends = [
                (
                    round(mid[0] + side * reach * np.cos(angle)),
                    round(mid[1] + side * reach * np.sin(angle)),
                )
                for side in (-1, 1)
            ]
            cv2.line(plate, ends[0], ends[1], (255.0,), thick, cv2.LINE_AA)
    elif kind == "rings":
        for _ in range(integer(rng, 1, 3)):
            radius = round(extent * uniform(rng, 0.12, 0.46))
            cv2.circle(
                plate, (round(centre[0]), round(centre[1])), radius, (255.0,), thick, cv2.LINE_AA
            )
    elif kind == "chips":
        for _ in range(integer(rng, 7, 26)):
            at = (
                round(centre[0] + uniform(rng, -0.46, 0.46) * extent),
                round(centre[1] + uniform(rng, -0.46, 0.46) * extent),
            )
            half = log_uniform(rng, 1.5, 9) * unit
            axes = (round(half), round(half * uniform(rng, 0.5, 1)))
            cv2.ellipse(plate, at, axes, uniform(rng, 0, 180), 0, 360, (255.0,), -1, cv2.LINE_AA)
    elif kind == "creases":
        for _ in range(integer(rng, 2, 9)):
            start = (
                centre[0] + uniform(rng, -0.45, 0.45) * extent,
                centre[1] + uniform(rng, -0.45, 0.45) * extent,
            )
            length, steps = extent * uniform(rng, 0.1, 0.5), integer(rng, 6, 20)
            points = walk(rng, start, uniform(rng, 0, 6.3), length, steps, rng.normal(0, 1), 0.3)
            widths = uniform(rng, 0.8, 2.5) * unit * rng.uniform(0.5, 1.3, steps)
            stroke(plate, points, widths, 255 * rng.uniform(0.3, 1, steps))
    elif kind == "pads":
        pitch = uniform(rng, 6, 20) * unit
        for step in range(integer(rng, 2, 12)):
            for row in range(integer(rng, 1, 3)):
                left, top = round(x + (step - 5) * pitch), round(y + row * pitch * 2)
                corner = (round(left + pitch * 0.5), round(top + pitch * 0.9))
                cv2.rectangle(plate, (left, top), corner, (255.0,), -1)
    else:
        name = "drilled hole"
        count, ring = integer(rng, 1, 8), extent * uniform(rng, 0.22, 0.38)
        radius, phase = round(uniform(rng, 2.5, 8) * unit), uniform(rng, 0, 6.3)
        ring = 0.0 if count == 1 else ring
        for index in range(count):
            turn = phase + index * 2 * np.pi / count
            at = (round(centre[0] + ring * np.cos(turn)), round(centre[1] + ring * np.sin(turn)))
            cv2.circle(plate, at, radius, (255.0,), -1, cv2.LINE_AA)
    alpha = f32(plate) * np.float32(1 / 255)
    if name == "drilled hole" and float((alpha * canvas.solid).sum()) < 0.97 * float(alpha.sum()):
        return []  # drilled across the border it would look like damage
    alpha = alpha * canvas.solid
    mask = alpha > 0.5
    if int(mask.sum()) < 9 or int(mask.sum()) > 0.5 * int(canvas.part.sum()):
        return []
    if name == "drilled hole" and rng.random() < 0.5:
        canvas.solid *= 1 - alpha  # drilled through: no longer part of the part, see `make_scene`
        return [(name, mask)]
    base = canvas.image[mask].mean(axis=0)
    tone = rng.uniform(0.03, 0.97, len(base)) if rng.random() < 0.5 else base + rng.normal(0, 0.2)
    if name == "drilled hole" or kind == "chips":
        tone = base * uniform(rng, 0.15, 0.7)
    if kind == "creases":
        tone = base * uniform(rng, 0.55, 0.9)
    if kind != "creases" and float(np.abs(tone - base).mean()) < 0.06:
        tone = base - 0.15 if base.mean() > 0.4 else base + 0.2
    weight = (alpha * np.float32(uniform(rng, 0.5, 1)))[..., None]
    canvas.image += weight * (f32(np.clip(tone, 0, 1)) - canvas.image)
    return [(name, mask)]
