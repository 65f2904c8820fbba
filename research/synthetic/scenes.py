"""Procedural scenes: what is looked at, as a recipe of category, texture, outline and marks.

A scene holds a `Canvas` without defects and the `Shot` it will be photographed with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clipsam.research.synthetic.camera import Shot, draw_shot
from clipsam.research.synthetic.clutter import add_clutter
from clipsam.research.synthetic.finish import FINISHED, add_finish
from clipsam.research.synthetic.parts import add_mark, mould, silhouette
from clipsam.runtime.planting.canvas import Canvas, Mask
from clipsam.runtime.planting.textures import (
    CONTRAST,
    F32,
    FAMILIES,
    Rng,
    choose,
    f32,
    integer,
    log_uniform,
    noise,
    texture,
    uniform,
)

COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.1, 0.1, 0.1),
    "dark gray": (0.25, 0.25, 0.26),
    "gray": (0.48, 0.48, 0.48),
    "light gray": (0.7, 0.7, 0.7),
    "white": (0.88, 0.88, 0.87),
    "silver": (0.66, 0.67, 0.7),
    "red": (0.7, 0.16, 0.14),
    "orange": (0.85, 0.45, 0.14),
    "yellow": (0.87, 0.76, 0.25),
    "green": (0.2, 0.5, 0.24),
    "dark green": (0.08, 0.28, 0.16),
    "blue": (0.18, 0.33, 0.68),
    "purple": (0.42, 0.25, 0.55),
    "pink": (0.87, 0.6, 0.65),
    "brown": (0.45, 0.29, 0.16),
    "dark brown": (0.26, 0.16, 0.1),
    "tan": (0.76, 0.6, 0.41),
    "beige": (0.85, 0.77, 0.63),
    "golden": (0.78, 0.6, 0.27),
    "copper": (0.72, 0.43, 0.28),
    "cream": (0.92, 0.87, 0.74),
}
GRAYS = ("black", "dark gray", "gray", "light gray", "white")

LOOKS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "smooth", "uniform"),
    "cloudy": ("cloudy", "mottled"),
    "brushed": ("brushed", "streaky"),
    "rolled": ("rolled", "banded"),
    "grain": ("grainy", "matte"),
    "asphalt": ("coarse", "rough"),
    "spots": ("speckled", "spotted"),
    "cells": ("leathery", "pebbled"),
    "ridges": ("wrinkled", "ridged"),
    "wood": ("wooden", "wood-grained"),
    "stripes": ("striped", "ribbed"),
    "grid": ("grid-like", "checkered"),
    "woven": ("woven",),
    "bricks": ("tiled", "jointed"),
    "flecks": ("fibrous", "fuzzy"),
}


@dataclass(frozen=True)
class Recipe:
    """Loose advice for a category; every entry is a list of names to draw from."""

    nouns: str
    families: str
    shapes: str = "surface"
    colours: str = "any"
    marks: str = ""
    lumpy: float = 0.2  # how often a part (not a surface) is moulded, see `mould`


def _advice(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


_METAL, _FOOD = "silver, gray, light gray, dark gray", "tan, brown, golden, beige, dark brown"
RECIPES: tuple[Recipe, ...] = (
    Recipe("steel plate, steel, metal sheet, steel strip", "rolled, brushed, grain, plain, cloudy",
        "surface", _METAL),
    Recipe("steel surface, metal surface, aluminium plate", "brushed, plain, grain", "surface",
        _METAL),
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
    Recipe("paper, plastic sheet, painted surface, film", "plain, grain, flecks", "surface",
        marks="text"),
    Recipe("metal nut, nut", "brushed, cloudy, plain", "hexagon, gear, ring", _METAL + ", golden",
        "holes"),
    Recipe("gear, washer, bearing, flange", "brushed, plain, grain", "gear, ring, disc",
        _METAL + ", copper", "holes, rings, text"),
    Recipe("screw, bolt, pipe", "brushed, stripes, plain", "screw, capsule", _METAL, "seam"),
    Recipe("metal part, machine part", "brushed, plain, grain, cloudy, rolled",
        "rounded, polygon, disc, ring, plate", _METAL, "holes, rings, text, seam"),
    Recipe("bottle, glass, lid", "plain, cloudy", "ring, disc", "brown, dark green, black, white",
        "rings, text"),
    Recipe("capsule, pill, tablet", "plain, grain", "capsule, disc, many", "any", "text, seam"),
    Recipe("capsules", "plain, grain", "many", "any", ""),
    Recipe("hazelnut, cashew, almond", "cloudy, ridges, wood", "blob, capsule", _FOOD, "creases",
        0.7),
    Recipe("cookie, biscuit", "cloudy, asphalt, ridges, cells, spots", "blob, blob, disc, rounded",
        _FOOD, "chips, chips, creases", 0.9),
    Recipe("bread, cake, muffin, potato, pebble", "cloudy, asphalt, ridges, spots, grain",
        "blob, blob, disc, rounded, capsule", _FOOD + ", gray, red, green", "creases, chips", 0.9),
    Recipe("chewing gum, fryum, pipe fryum, macaroni", "plain, cloudy, ridges",
        "blob, ring, many, capsule", "white, cream, yellow, orange, tan, pink", lumpy=0.5),
    Recipe("candle", "plain, cloudy", "many, disc", "white, cream, yellow", "rings"),
    Recipe("pcb, printed circuit board, transistor", "plain, grid, grain",
        "surface, rounded, plate", "green, dark green, blue, black", "pads, text, pads"),
    Recipe("cable", "plain, stripes", "disc, many, ring", "any", "holes"),
    Recipe("toothbrush, zipper", "stripes, woven, flecks", "strip, rounded", "any", "seam"),
    Recipe("plastic part, housing, cover", "plain, grain, cells", "rounded, plate, polygon, disc",
        "any", "holes, text, text, seam, rings"),
    Recipe("object, part, product", ", ".join(FAMILIES),
        "rounded, polygon, disc, ring, blob, many, gear, capsule, plate, strip", "any",
        "text, holes, text, chips, rings, seam, pads"),
    Recipe("surface, material, object", ", ".join(FAMILIES), "surface", "any", "text, seam, chips"),
)  # fmt: skip


@dataclass
class Scene:
    """A part without defects, and the words for it; `things` are (kind, mask) that belong to it."""

    canvas: Canvas
    shot: Shot
    category: str
    colour: str
    look: str
    gray: bool
    things: list[tuple[str, Mask]] = field(default_factory=list)


def _painted(rng: Rng, size: int, family: str, angle: float, base: F32, contrast: float) -> F32:
    """A textured surface, size x size x C, around the base colour."""
    channels = len(base)
    tint = np.ones(channels, np.float32)
    if channels == 3:
        tint = f32(base / (base.mean() + 1e-3)) * np.float32(0.6) + np.float32(0.4)
        if rng.random() < 0.3:
            tint = tint * f32(rng.uniform(0.3, 1.6, 3))
    image = base + texture(rng, size, family, angle)[..., None] * (tint * np.float32(contrast))
    if rng.random() < 0.3:  # a slow drift of the tone, as of old paint or oxide
        drift = noise(rng, size, uniform(rng, 2, 6))[..., None]
        image += drift * (rng.normal(0, 0.03, channels)).astype(np.float32)
    return np.clip(f32(image), 0, 1)


def _base(rng: Rng, colours: tuple[str, ...], gray: bool) -> tuple[str, F32]:
    if colours == ("any",):
        colours = tuple(COLOURS)
    name = choose(rng, colours)
    rgb = f32(COLOURS[name]) + rng.normal(0, 0.05, 3).astype(np.float32)
    if not gray:
        return name, np.clip(rgb, 0.04, 0.96)
    value = float(np.clip(rgb.mean() + rng.normal(0, 0.08), 0.06, 0.94))
    steps = [abs(value - COLOURS[word][0]) for word in GRAYS]
    return GRAYS[int(np.argmin(steps))], np.full(1, value, np.float32)


def make_scene(rng: Rng, size: int, fine: bool = False) -> Scene:
    """A part without defects: recipe, texture, outline, marks, background; of a `fine` one its
    finish, too."""
    recipe = RECIPES[integer(rng, 0, len(RECIPES) - 1)]
    # Surfaces, metal ones above all, would drown in the many objects: draw them more often.
    if recipe.shapes != "surface" and rng.random() < 0.35:
        recipe = RECIPES[integer(rng, 0, 2 if rng.random() < 0.35 else 12)]
    gray = bool(rng.random() < 0.45)
    noun = choose(rng, _advice(recipe.nouns))
    loose = rng.random() < 0.12
    family = choose(rng, tuple(FAMILIES) if loose else _advice(recipe.families))
    shape = choose(rng, _advice(recipe.shapes))
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
        solid, things = silhouette(rng, size, shape)
        for _ in range(6):
            _, under = _base(rng, ("any",) if rng.random() < 0.5 else GRAYS, gray)
            if float(np.abs(under - base).mean()) > 0.14:
                break
        below = choose(rng, tuple(FAMILIES) if rng.random() < 0.5 else ("plain", "grain"))
        background = _painted(
            rng,
            size,
            below,
            uniform(rng, 0, np.pi),
            under,
            log_uniform(rng, CONTRAST[below][0], CONTRAST[below][1]) * 0.7,
        )
        add_clutter(rng, image, background, solid)
    shot = draw_shot(rng, size)
    canvas = Canvas(
        image,
        background,
        solid > 0.5,
        solid.copy(),
        shape == "surface",
        shape == "many",
        angle,
        uniform(rng, 0, 2 * np.pi),
        contrast,
        shot.gain,
        shot.noise,
    )
    if not canvas.surface and rng.random() < recipe.lumpy:
        mould(rng, canvas)
    if fine and family in FINISHED and rng.random() < 0.75:
        add_finish(rng, canvas)
    marks = _advice(recipe.marks)
    if marks and rng.random() < 0.7:
        for _ in range(integer(rng, 1, 2)):
            things += add_mark(rng, canvas, choose(rng, marks))
    canvas.part = canvas.solid > 0.5
    return Scene(canvas, shot, noun, colour, choose(rng, LOOKS[family]), gray, things)
