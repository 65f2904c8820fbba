"""Procedural scenes: what is looked at (recipe, outline, marks), its light and the camera.

A scene is made as a `Canvas` (see `synthetic_defects`), defects are added to it, then `compose`
puts the part on its background, `light_up` lights it and `photograph` turns it into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from clipsam.research.synthetic_defects import Canvas, Mask
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
    plane,
    texture,
    uniform,
)

COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.1, 0.1, 0.1), "dark gray": (0.25, 0.25, 0.26), "gray": (0.48, 0.48, 0.48),
    "light gray": (0.7, 0.7, 0.7), "white": (0.88, 0.88, 0.87), "silver": (0.66, 0.67, 0.7),
    "red": (0.7, 0.16, 0.14), "orange": (0.85, 0.45, 0.14), "yellow": (0.87, 0.76, 0.25),
    "green": (0.2, 0.5, 0.24), "dark green": (0.08, 0.28, 0.16), "blue": (0.18, 0.33, 0.68),
    "purple": (0.42, 0.25, 0.55), "pink": (0.87, 0.6, 0.65), "brown": (0.45, 0.29, 0.16),
    "dark brown": (0.26, 0.16, 0.1), "tan": (0.76, 0.6, 0.41), "beige": (0.85, 0.77, 0.63),
    "golden": (0.78, 0.6, 0.27), "copper": (0.72, 0.43, 0.28), "cream": (0.92, 0.87, 0.74),
}
GRAYS = ("black", "dark gray", "gray", "light gray", "white")

LOOKS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "smooth", "uniform"), "cloudy": ("cloudy", "mottled"),
    "brushed": ("brushed", "streaky"), "rolled": ("rolled", "banded"),
    "grain": ("grainy", "matte"), "asphalt": ("coarse", "rough"),
    "spots": ("speckled", "spotted"), "cells": ("leathery", "pebbled"),
    "ridges": ("wrinkled", "ridged"), "wood": ("wooden", "wood-grained"),
    "stripes": ("striped", "ribbed"), "grid": ("grid-like", "checkered"),
    "woven": ("woven",), "bricks": ("tiled", "jointed"), "flecks": ("fibrous", "fuzzy"),
}


@dataclass(frozen=True)
class Recipe:
    """Loose advice for a category; every entry is a list of names to draw from."""

    nouns: str
    families: str
    shapes: str = "surface"
    colours: str = "any"
    marks: str = ""


def _advice(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


_METAL, _FOOD = "silver, gray, light gray, dark gray", "tan, brown, golden, beige, dark brown"
RECIPES: tuple[Recipe, ...] = (
    Recipe("steel plate, metal sheet, steel strip", "rolled, brushed, grain, plain, cloudy",
           "surface", _METAL),
    Recipe("steel surface, metal surface, aluminium", "brushed, plain, grain", "surface", _METAL),
    Recipe("magnetic tile, ceramic plate, casting", "cloudy, grain, plain, brushed",
           "surface, rounded", "gray, dark gray, light gray"),
    Recipe("tile, stone, granite, marble", "spots, cloudy, ridges", "surface"),
    Recipe("leather, hide", "cells, ridges", "surface", "brown, dark brown, tan, black, red"),
    Recipe("wood, wooden board, plank", "wood", "surface", "brown, tan, golden, dark brown, beige"),
    Recipe("carpet, felt", "flecks, woven, grain", "surface"),
    Recipe("grid, wire mesh", "grid", "surface", _METAL),
    Recipe("fabric, textile, cloth", "woven, stripes, grid, flecks", "surface"),
    Recipe("asphalt, road", "asphalt, spots", "surface", "gray, dark gray, black"),
    Recipe("concrete, plaster wall, wall", "cloudy, grain, asphalt, plain", "surface",
           "gray, light gray, beige, white"),
    Recipe("brick wall, tiled floor", "bricks", "surface"),
    Recipe("paper, plastic sheet, painted surface, film", "plain, grain, flecks", "surface"),
    Recipe("metal nut, nut", "brushed, cloudy, plain", "hexagon, gear, ring", _METAL + ", golden",
           "holes"),
    Recipe("gear, washer, bearing, flange", "brushed, plain, grain", "gear, ring, disc",
           _METAL + ", copper", "holes, rings"),
    Recipe("screw, bolt, pipe", "brushed, stripes, plain", "screw, capsule", _METAL, "seam"),
    Recipe("metal part, machine part", "brushed, plain, grain, cloudy, rolled",
           "rounded, polygon, disc, ring, plate", _METAL, "holes, rings, text, seam"),
    Recipe("bottle, glass, lid", "plain, cloudy", "ring, disc", "brown, dark green, black, white",
           "rings"),
    Recipe("capsule, pill, tablet", "plain, grain", "capsule, disc, many", "any", "text, seam"),
    Recipe("capsules", "plain, grain", "many", "any", ""),
    Recipe("hazelnut, cashew, almond", "cloudy, ridges, wood", "blob, capsule", _FOOD),
    Recipe("cookie, biscuit", "cloudy, asphalt, grain, cells", "blob, disc, rounded", _FOOD,
           "chips, chips, holes"),
    Recipe("chewing gum, fryum, macaroni", "plain, cloudy, ridges", "blob, ring, many, capsule",
           "white, cream, yellow, orange, tan, pink"),
    Recipe("candle", "plain, cloudy", "many, disc", "white, cream, yellow", "rings"),
    Recipe("pcb, circuit board, transistor", "plain, grid, grain", "surface, rounded, plate",
           "green, dark green, blue, black", "pads, text, pads"),
    Recipe("cable", "plain, stripes", "disc, many, ring", "any", "holes"),
    Recipe("toothbrush, zipper", "stripes, woven, flecks", "strip, rounded", "any", "seam"),
    Recipe("plastic part, housing, cover", "plain, grain, cells", "rounded, plate, polygon, disc",
           "any", "holes, text, seam, rings"),
    Recipe("object, part, product", ", ".join(FAMILIES),
           "rounded, polygon, disc, ring, blob, many, gear, capsule, plate, strip", "any",
           "holes, text, chips, rings, seam, pads"),
    Recipe("surface, material, object", ", ".join(FAMILIES), "surface", "any", "text, seam, chips"),
)


@dataclass
class Scene:
    """A part without defects, and the words for it; `things` are (kind, mask) that belong to it."""

    canvas: Canvas
    category: str
    colour: str
    look: str
    gray: bool
    things: list[tuple[str, Mask]] = field(default_factory=list)


def _choose(rng: Rng, names: tuple[str, ...]) -> str:
    return names[integer(rng, 0, len(names) - 1)]


def _painted(rng: Rng, size: int, family: str, angle: float, base: F32,
             contrast: float) -> F32:
    """A textured surface, size x size x C, around the base colour."""
    channels = len(base)
    tint = np.ones(channels, np.float32)
    if channels == 3:
        tint = f32(base / (base.mean() + 1e-3)) * np.float32(0.6) + np.float32(0.4)
        if rng.random() < 0.3:
            tint = tint * f32(rng.uniform(0.3, 1.6, 3))
    image = base + texture(rng, size, family, angle)[..., None] * (tint * np.float32(contrast))
    if rng.random() < 0.15:  # a slow drift of the tone, as of old paint or oxide
        image += noise(rng, size, 4)[..., None] * (rng.normal(0, 0.03, channels)).astype(np.float32)
    return np.clip(f32(image), 0, 1)


def _base(rng: Rng, colours: tuple[str, ...], gray: bool) -> tuple[str, F32]:
    if colours == ("any",):
        colours = tuple(COLOURS)
    name = _choose(rng, colours)
    rgb = f32(COLOURS[name]) + rng.normal(0, 0.05, 3).astype(np.float32)
    if not gray:
        return name, np.clip(rgb, 0.04, 0.96)
    value = float(np.clip(rgb.mean() + rng.normal(0, 0.08), 0.06, 0.94))
    steps = [abs(value - COLOURS[word][0]) for word in GRAYS]
    return GRAYS[int(np.argmin(steps))], np.full(1, value, np.float32)


def _polygon(size: int, points: F32) -> U8:
    plate = np.zeros((size, size), np.uint8)
    cv2.fillPoly(plate, [np.round(points * 16).astype(np.int32)], (255.0,), cv2.LINE_AA, 4)
    return plate


def _outline(rng: Rng, shape: str, centre: tuple[float, float], radius: float,
             angle: float) -> F32:
    """Corner points, N x 2 (x, y) in pixels, of one silhouette."""
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    cos, sin = np.cos(turn), np.sin(turn)
    if shape in ("disc", "ring"):
        squeeze = uniform(rng, 0.85, 1) if rng.random() < 0.3 else 1.0
        x, y = cos, sin * squeeze
    elif shape == "hexagon":
        turn = np.linspace(0, 2 * np.pi, integer(rng, 5, 8), endpoint=False)
        x, y = np.cos(turn), np.sin(turn)
    elif shape == "gear":
        teeth, depth = integer(rng, 4, 24), uniform(rng, 0.08, 0.25)
        wave = np.clip(np.sin(turn * teeth) * uniform(rng, 1, 4), -1, 1)
        x, y = cos * (1 - depth / 2 + wave * depth / 2), sin * (1 - depth / 2 + wave * depth / 2)
    elif shape == "polygon":
        turn = np.sort(rng.uniform(0, 2 * np.pi, integer(rng, 4, 8)))
        turn = turn * 0.3 + np.linspace(0, 2 * np.pi, len(turn), endpoint=False) * 0.7
        reach = rng.uniform(0.7, 1, len(turn))
        x, y = np.cos(turn) * reach, np.sin(turn) * reach
    elif shape == "blob":
        wobble = np.ones_like(turn)
        for order in range(2, 9):
            wobble += rng.normal(0, 0.11 / order) * np.cos(order * turn + uniform(rng, 0, 6.3))
        wobble += np.convolve(rng.normal(0, uniform(rng, 0, 0.02), 182), [0.5, 0.5, 0.5], "valid")
        x, y = cos * wobble, sin * wobble * uniform(rng, 0.65, 1)
    elif shape == "screw":
        t = np.linspace(-1, 1, 90)
        half = np.where(t < -0.7, 0.28, 0.13 + 0.02 * np.sign(np.sin(t * uniform(rng, 40, 90))))
        half = np.where(t > 0.85, half * (1 - t) / 0.15, half)
        x, y = np.concatenate([t, t[::-1]]), np.concatenate([half, -half[::-1]])
    else:  # super-ellipses: rounded rectangles, capsules, plates, strips
        power = 2 / uniform(rng, 3, 14)
        aspect = {"strip": uniform(rng, 0.12, 0.3), "capsule": uniform(rng, 0.3, 0.5)}.get(
            shape, uniform(rng, 0.5, 1))
        x = np.sign(cos) * np.abs(cos) ** power
        y = np.sign(sin) * np.abs(sin) ** power * aspect
    turned_x = x * np.cos(angle) - y * np.sin(angle)
    turned_y = x * np.sin(angle) + y * np.cos(angle)
    return f32(np.stack([turned_x * radius + centre[0], turned_y * radius + centre[1]], 1))


def _silhouette(rng: Rng, size: int, shape: str) -> tuple[F32, list[tuple[str, Mask]]]:
    """Coverage of the part, size x size, and the parts and through-holes it consists of."""
    things: list[tuple[str, Mask]] = []
    if shape == "many":
        side = integer(rng, 2, 5)
        kind = _choose(rng, ("capsule", "disc", "blob", "rounded", "ring", "hexagon"))
        cover = np.zeros((size, size), np.uint8)
        angle, pitch = uniform(rng, 0, 3.2), size / side
        scatter = 0.0 if rng.random() < 0.4 else 0.08 * pitch
        radius = pitch * uniform(rng, 0.3, 0.44)
        for index in range(side * side):
            if rng.random() < 0.12:
                continue
            at = ((index % side + 0.5) * pitch + rng.normal(0, scatter),
                  (index // side + 0.5) * pitch + rng.normal(0, scatter))
            turn = angle if scatter == 0 else uniform(rng, 0, 3.2)
            one = _polygon(size, _outline(rng, kind, at, radius, turn))
            if kind == "ring":
                cv2.circle(one, (int(at[0]), int(at[1])), int(radius * 0.4), (0.0,), -1, cv2.LINE_AA)
            if (one > 127).sum() > 9:
                things.append(("part", one > 127))
            cover = np.maximum(cover, one)
        return f32(cover) * np.float32(1 / 255), things
    radius = size * uniform(rng, 0.3, 0.48) * (1.15 if shape in ("strip", "screw", "plate") else 1)
    centre = (size * uniform(rng, 0.42, 0.58), size * uniform(rng, 0.42, 0.58))
    cover = _polygon(size, _outline(rng, shape, centre, radius, uniform(rng, 0, 6.3)))
    if shape == "ring" or (shape in ("gear", "hexagon") and rng.random() < 0.7):
        inner = max(2, round(radius * uniform(rng, 0.25, 0.65)))
        bore = np.zeros_like(cover)
        cv2.circle(bore, (round(centre[0]), round(centre[1])), inner, (255.0,), -1, cv2.LINE_AA)
        cover = np.minimum(cover, 255 - bore)
        things.append(("hole", bore > 127))
    things.insert(0, ("part", cover > 127))
    return f32(cover) * np.float32(1 / 255), things


def _mark(rng: Rng, canvas: Canvas, kind: str) -> list[tuple[str, Mask]]:
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
    name = "mark"
    if kind == "text":
        letters = "".join(_choose(rng, tuple("ABCDEFGHKLMNPRSTUVXYZ0123456789-"))
                          for _ in range(integer(rng, 1, 8)))
        scale, face = log_uniform(rng, 0.35, 1.6) * unit, integer(rng, 0, 6)
        (width, height), _ = cv2.getTextSize(letters, face, scale, thick)
        at = (round(x - width / 2), round(y + height / 2))
        cv2.putText(plate, letters, at, face, scale, (255.0,), thick, cv2.LINE_AA)
    elif kind == "seam":
        angle = canvas.axis + (np.pi / 2 if rng.random() < 0.5 else 0)
        gap, reach = uniform(rng, 10, 50) * unit, 2 * size
        for offset in (0.0,) if rng.random() < 0.6 else (-gap, gap):
            mid = (x - np.sin(angle) * offset, y + np.cos(angle) * offset)
            ends = [(round(mid[0] + side * reach * np.cos(angle)),
                     round(mid[1] + side * reach * np.sin(angle))) for side in (-1, 1)]
            cv2.line(plate, ends[0], ends[1], (255.0,), thick, cv2.LINE_AA)
    elif kind == "rings":
        for _ in range(integer(rng, 1, 3)):
            radius = round(extent * uniform(rng, 0.12, 0.46))
            cv2.circle(plate, (round(centre[0]), round(centre[1])), radius, (255.0,), thick,
                       cv2.LINE_AA)
    elif kind == "chips":
        for _ in range(integer(rng, 7, 26)):
            at = (round(centre[0] + uniform(rng, -0.46, 0.46) * extent),
                  round(centre[1] + uniform(rng, -0.46, 0.46) * extent))
            radius = log_uniform(rng, 1.5, 9) * unit
            axes = (round(radius), round(radius * uniform(rng, 0.5, 1)))
            cv2.ellipse(plate, at, axes, uniform(rng, 0, 180), 0, 360, (255.0,), -1, cv2.LINE_AA)
    elif kind == "pads":
        pitch = uniform(rng, 6, 20) * unit
        for step in range(integer(rng, 2, 12)):
            for row in range(integer(rng, 1, 3)):
                left, top = round(x + (step - 5) * pitch), round(y + row * pitch * 2)
                corner = (round(left + pitch * 0.5), round(top + pitch * 0.9))
                cv2.rectangle(plate, (left, top), corner, (255.0,), -1)
    else:
        name = "hole"
        count, ring = integer(rng, 1, 8), extent * uniform(rng, 0.22, 0.38)
        radius, phase = round(uniform(rng, 2.5, 8) * unit), uniform(rng, 0, 6.3)
        ring = 0.0 if count == 1 else ring
        for index in range(count):
            turn = phase + index * 2 * np.pi / count
            at = (round(centre[0] + ring * np.cos(turn)), round(centre[1] + ring * np.sin(turn)))
            cv2.circle(plate, at, radius, (255.0,), -1, cv2.LINE_AA)
    alpha = f32(plate) * np.float32(1 / 255) * canvas.solid
    mask = alpha > 0.5
    if int(mask.sum()) < 9 or int(mask.sum()) > 0.5 * int(canvas.part.sum()):
        return []
    if name == "hole" and rng.random() < 0.5:
        canvas.solid *= 1 - alpha  # drilled through; it stays inside `part`, see `make_scene`
        return [(name, mask)]
    base = canvas.image[mask].mean(axis=0)
    tone = rng.uniform(0.03, 0.97, len(base)) if rng.random() < 0.5 else base + rng.normal(0, 0.2)
    if name == "hole" or kind == "chips":
        tone = base * uniform(rng, 0.15, 0.7)
    if float(np.abs(tone - base).mean()) < 0.06:
        tone = base - 0.15 if base.mean() > 0.4 else base + 0.2
    weight = (alpha * np.float32(uniform(rng, 0.5, 1)))[..., None]
    canvas.image += weight * (f32(np.clip(tone, 0, 1)) - canvas.image)
    return [(name, mask)]


def make_scene(rng: Rng, size: int) -> Scene:
    """A part without defects: recipe, texture, outline, marks, background."""
    recipe = RECIPES[integer(rng, 0, len(RECIPES) - 1)]
    # A third of the steel-like surfaces would drown in the many objects: draw surfaces more.
    if recipe.shapes != "surface" and rng.random() < 0.3:
        recipe = RECIPES[integer(rng, 0, 12)]
    gray = bool(rng.random() < 0.45)
    noun = _choose(rng, _advice(recipe.nouns))
    loose = rng.random() < 0.12
    family = _choose(rng, tuple(FAMILIES) if loose else _advice(recipe.families))
    shape = _choose(rng, _advice(recipe.shapes))
    colour, base = _base(rng, ("any",) if loose else _advice(recipe.colours), gray)
    low, high = CONTRAST[family]
    contrast = log_uniform(rng, low, high)
    angle = (0.0, np.pi / 2, uniform(rng, 0, np.pi))[integer(rng, 0, 2)]
    image = _painted(rng, size, family, angle, base, contrast)
    things: list[tuple[str, Mask]] = []
    if shape == "surface":
        solid = np.ones((size, size), np.float32)
        background = image
    else:
        solid, things = _silhouette(rng, size, shape)
        for _ in range(6):
            _, under = _base(rng, ("any",) if rng.random() < 0.5 else GRAYS, gray)
            if float(np.abs(under - base).mean()) > 0.14:
                break
        below = _choose(rng, tuple(FAMILIES) if rng.random() < 0.5 else ("plain", "grain"))
        background = _painted(rng, size, below, uniform(rng, 0, np.pi), under,
                              log_uniform(rng, CONTRAST[below][0], CONTRAST[below][1]) * 0.7)
    canvas = Canvas(image, background, solid > 0.5, solid.copy(), shape == "surface", angle,
                    uniform(rng, 0, 2 * np.pi), contrast)
    marks = _advice(recipe.marks)
    if marks and rng.random() < 0.65:
        for _ in range(integer(rng, 1, 2)):
            things += _mark(rng, canvas, _choose(rng, marks))
    canvas.part = canvas.solid > 0.5
    return Scene(canvas, noun, colour, _choose(rng, LOOKS[family]), gray, things)


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


def light_up(rng: Rng, image: F32) -> F32:
    """Uneven light: gradient, vignette, a specular band, a soft shadow; HxWxC in, HxWxC out."""
    size = image.shape[0]
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
    if rng.random() < 0.15:
        gain += fractal(rng, coarse, 2, 2, 0.5) * np.float32(uniform(rng, 0.02, 0.07))
    gain = np.clip(gain, 0.45, 1.5)
    return image * f32(cv2.resize(gain, (size, size), interpolation=cv2.INTER_LINEAR))[..., None]


def photograph(rng: Rng, image: F32) -> U8:
    """Blur, contrast, gamma, sensor noise, JPEG: float32 HxWxC in, uint8 HxWx3 out."""
    size, channels = image.shape[0], image.shape[2]
    if rng.random() < 0.6:
        image = blur(image, uniform(rng, 0.3, 1.1) * size / 192)
    gain = uniform(rng, 0.8, 1.3)
    image = (image - np.float32(0.5)) * np.float32(gain) + np.float32(0.5 + rng.normal(0, 0.04))
    if rng.random() < 0.7:
        sigma = log_uniform(rng, 0.003, 0.04)
        shape = image.shape if channels == 1 or rng.random() < 0.5 else (size, size, 1)
        image = image + rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma)
    gamma = uniform(rng, 0.8, 1.25)
    table = np.power(np.linspace(0, 1, 256), gamma) * 255
    photo = np.clip(image * np.float32(255), 0, 255).astype(np.uint8).reshape(size, size, channels)
    photo = np.asarray(cv2.LUT(photo, np.round(table).astype(np.uint8)), np.uint8)
    photo = photo.reshape(size, size, channels)
    if rng.random() < 0.35:
        ok, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, integer(rng, 35, 95)])
        if ok:
            photo = np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)
            photo = photo.reshape(size, size, channels)
    return np.ascontiguousarray(np.broadcast_to(photo, (size, size, 3)))
