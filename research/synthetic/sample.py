"""Procedural inspection images with labelled defects and captions, from a seed alone.

`make_sample` draws a part or a surface (`scenes`), adds zero to four defects
(`clipsam.runtime.planting`), photographs it (`camera`) and describes it in English (`captions`).
Nothing is taken from photographs. The same generator state gives the same bytes, whatever OpenCV's
thread count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipsam.research.synthetic.camera import compose, photograph
from clipsam.research.synthetic.captions import write_caption
from clipsam.research.synthetic.scenes import make_scene
from clipsam.runtime.planting.canvas import Canvas
from clipsam.runtime.planting.kinds import BY_NAME, KINDS, DefectKind
from clipsam.runtime.planting.textures import Rng


@dataclass(frozen=True)
class Instance:
    """One labelled thing: mask is HxW, True where it is visible."""

    kind: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """One picture and everything known about it.

    Attributes:
        image: HxWx3 uint8, RGB (three equal channels where the picture is gray).
        mask: HxW uint8, 0 = normal, 1 = anomalous: the union of the defects.
        kind_map: HxW uint8, 0 = normal, else 1 + index into `KINDS`; where defects
            overlap, the later one.
        defects: the defects one by one; masks of different defects may overlap.
        parts: things that are not anomalous, of kind "part", "drilled hole", "printed text",
            "seam" or "mark", as far as they are still there; at least 9 pixels each. A surface that
            fills the frame is none.
        outline: HxW uint8, 1 within the outline of the undamaged part, else 0 (a surface that fills
            the frame is all 1).
        present: HxW uint8, 1 where the part is still there.
        category: a noun for the caption.
        caption: one English phrase that names category, look and state.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    kind_map: NDArray[np.uint8]
    defects: tuple[Instance, ...]
    parts: tuple[Instance, ...]
    outline: NDArray[np.uint8]
    present: NDArray[np.uint8]
    category: str
    caption: str


def _draw_kinds(rng: Rng, surface: bool, fine: bool, even: bool) -> list[DefectKind]:
    """The kinds to try, outline defects first, so that nothing is drawn where they cut."""
    kinds = [kind for kind in KINDS if not (surface and kind.needs_outline)]
    weights = np.array([k.weight if k.fine is None or not fine else k.fine for k in kinds])
    if even:
        weights = (weights > 0).astype(float)
    count = int(rng.choice(4, p=[0.58, 0.27, 0.1, 0.05])) + 1
    chosen = [kinds[i] for i in rng.choice(len(kinds), count, p=weights / weights.sum())]
    if rng.random() < 0.3:
        chosen = [chosen[0]] * count
    return sorted(chosen, key=lambda kind: not kind.needs_outline)


def _add(rng: Rng, canvas: Canvas, kind: DefectKind, tries: int) -> list[Instance]:
    """One defect of this kind, or none where no try was visible."""
    for _ in range(tries):
        mask = kind.draw(rng, canvas)
        if mask is not None:
            return [Instance(kind.name, mask)]
    return []


def make_sample(
    rng: np.random.Generator,
    size: int = 192,
    *,
    defect_rate: float = 0.7,
    fine: bool = False,
    even: bool = False,
) -> Sample:
    """Draw one sample of size x size pixels; a share of defect_rate has at least one defect.

    A `fine` one shows small and thin defects too, and what brushes, tools and moulds leave on good
    surfaces. The others are the pictures that published figures were measured on. `even` draws
    every kind of defect as often as any other.
    """
    scene = make_scene(rng, size, fine)
    canvas = scene.canvas
    defects: list[Instance] = []
    if rng.random() < defect_rate:
        for kind in _draw_kinds(rng, canvas.surface, fine, even):
            defects += _add(rng, canvas, kind, tries=3)
        if not defects:  # nothing was visible: a dark blob or a bright one always is
            defects += _add(rng, canvas, BY_NAME["blob"], tries=20)
    image = photograph(rng, scene.shot, compose(rng, canvas))
    kind_map = np.zeros((size, size), np.uint8)
    gone = np.zeros((size, size), np.bool_)
    for item in defects:
        kind = BY_NAME[item.kind]
        kind_map[item.mask] = 1 + KINDS.index(kind)
        if kind.needs_outline:
            gone |= item.mask
    parts = [
        Instance(name, mask & (canvas.solid > 0.5 if name == "part" else ~gone))
        for name, mask in scene.things
    ]
    parts = [item for item in parts if int(item.mask.sum()) >= 9]
    caption = write_caption(
        rng, scene, float(image.mean()) / 255, [(item.kind, item.mask) for item in defects]
    )
    return Sample(
        image,
        (kind_map > 0).astype(np.uint8),
        kind_map,
        tuple(defects),
        tuple(parts),
        canvas.part.astype(np.uint8),
        (canvas.part & (canvas.solid > 0.5)).astype(np.uint8),
        scene.category,
        caption,
    )


def sample_from_seed(
    seed: int, size: int = 192, *, defect_rate: float = 0.7, fine: float = 0, even: float = 0
) -> Sample:
    """The sample of one seed, for a share of the seeds a `fine` one, for another one with `even`
    kinds: same arguments, same bytes."""
    place = float(np.random.default_rng([seed, 5]).random())
    return make_sample(
        np.random.default_rng(seed),
        size,
        defect_rate=defect_rate,
        fine=place < fine,
        even=fine <= place < fine + even,
    )
