"""The kinds of defect, one entry each: a new kind is a function that draws it and an entry here.

A drawing function changes the `Canvas` and returns the HxW mask of what is visible, or None. The
order is part of the samples: a kind's number in `Sample.kind_map` is 1 + its place in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipsam.runtime.planting.area_defects import foreign, patch, stain, uneven
from clipsam.runtime.planting.canvas import Canvas, Mask
from clipsam.runtime.planting.fine_defects import hairline, nick, pinhole, ragged_edge
from clipsam.runtime.planting.outline_defects import chip, fray, missing
from clipsam.runtime.planting.surface_defects import blob, crack, dent, hole, inclusion, scratch
from clipsam.runtime.planting.textures import Rng


@dataclass(frozen=True)
class DefectKind:
    """One kind of defect.

    Attributes:
        name: what labels call it.
        draw: adds one to the canvas; None where it would not be visible.
        weight: how often it is drawn, relative to the others; 0: only in fine pictures.
        singular: what captions call one of them, with its article; chosen at random.
        plural: what captions call several of them.
        needs_outline: whether it cuts into a part's outline, so never drawn on a surface that
            fills the frame.
        fine: how often it is drawn in fine pictures, which ask for small defects; None: as often
            as in others.
    """

    name: str
    draw: Callable[[Rng, Canvas], Mask | None]
    weight: float
    singular: tuple[str, ...]
    plural: str
    needs_outline: bool = False
    fine: float | None = None


KINDS: tuple[DefectKind, ...] = (
    DefectKind("scratch", scratch, 2.6, ("a scratch", "a scratch", "a thin scratch"), "scratches"),
    DefectKind("crack", crack, 1.1, ("a crack", "a crack", "a fracture"), "cracks"),
    DefectKind("hole", hole, 1.0, ("a hole", "a pore", "a pit", "a blowhole"), "holes"),
    DefectKind("blob", blob, 1.0, ("a blob", "a spot", "a lump"), "spots"),
    DefectKind("stain", stain, 0.6, ("a stain", "a stain", "a discoloration"), "stains"),
    DefectKind(
        "foreign texture",
        foreign,
        0.9,
        ("a foreign texture", "foreign material", "contamination"),
        "foreign textures",
    ),
    DefectKind(
        "chipped edge",
        chip,
        1.2,
        ("a chipped edge", "a broken edge", "a chip"),
        "chipped edges",
        needs_outline=True,
    ),
    DefectKind(
        "missing part",
        missing,
        3.2,
        ("a missing part", "a missing piece", "a piece broken off"),
        "missing parts",
        needs_outline=True,
    ),
    DefectKind("dent", dent, 0.7, ("a dent", "a bump"), "dents"),
    DefectKind("patch", patch, 2.2, ("a patch", "a ragged patch", "an irregular patch"), "patches"),
    DefectKind(
        "inclusion", inclusion, 1.5, ("an inclusion", "inclusions", "streaks"), "inclusions"
    ),
    DefectKind("uneven", uneven, 0.25, ("an uneven area", "an uneven surface"), "uneven areas"),
    DefectKind("fray", fray, 0.5, ("a frayed edge", "a fray"), "frayed edges", needs_outline=True),
    DefectKind("nick", nick, 0, ("a nick", "a small chip"), "nicks", needs_outline=True, fine=3),
    DefectKind("hairline", hairline, 0, ("a hair crack", "a fine scratch"), "hairlines", fine=4),
    DefectKind("pinhole", pinhole, 0, ("a pinhole", "a speck", "a tiny pit"), "pinholes", fine=3),
    DefectKind(
        "ragged edge",
        ragged_edge,
        0,
        ("a ragged edge", "a frayed edge", "a crumbled edge"),
        "ragged edges",
        needs_outline=True,
        fine=2,
    ),
)
BY_NAME = {kind.name: kind for kind in KINDS}
