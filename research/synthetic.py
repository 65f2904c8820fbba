"""Procedural inspection images with labelled defects and captions, from a seed alone.

`make_sample` draws a part or a surface (`synthetic_scenes`: textures, outlines, marks, light,
camera), adds zero to four defects (`synthetic_defects`) and describes the result in English.
Nothing is taken from photographs. The same generator state gives the same bytes, whatever
OpenCV's thread count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipsam.research.synthetic_defects import (
    DEFECT_KINDS,
    OUTLINE_KINDS,
    Mask,
    add_defect,
)
from clipsam.research.synthetic_scenes import Scene, compose, light_up, make_scene, photograph
from clipsam.research.synthetic_textures import Rng, integer

__all__ = ["DEFECT_KINDS", "Instance", "Sample", "make_sample", "sample_from_seed"]


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
        kind_map: HxW uint8, 0 = normal, else 1 + index into `DEFECT_KINDS`; where defects
            overlap, the later one.
        defects: the defects one by one; masks of different defects may overlap.
        parts: things that are not anomalous, of kind "part", "hole" or "mark".
        category: a noun for the caption.
        caption: one English phrase that names category, look and state.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    kind_map: NDArray[np.uint8]
    defects: tuple[Instance, ...]
    parts: tuple[Instance, ...]
    category: str
    caption: str


# Relative frequency on surfaces and on parts with an outline.
_WEIGHTS: dict[str, float] = {
    "scratch": 1.5, "crack": 1.1, "hole": 1.0, "blob": 1.0, "stain": 0.9, "foreign texture": 0.9,
    "chipped edge": 1.2, "missing part": 1.8, "dent": 0.7, "patch": 1.5, "inclusion": 1.5,
    "uneven": 0.5, "fray": 0.5,
}

_GOOD = ("flawless", "perfect", "good", "undamaged", "unblemished", "intact", "normal", "clean")
_BAD = ("damaged", "defective", "flawed", "faulty", "anomalous", "broken", "imperfect")
_SHOTS = ("a photo of", "a close-up of", "a close-up photo of", "a picture of",
          "an inspection image of", "a cropped photo of", "an industrial photo of", "")
_GRAY_SHOTS = ("a grayscale photo of", "a black and white photo of", "a gray image of")


def _one(rng: Rng, names: tuple[str, ...]) -> str:
    return names[integer(rng, 0, len(names) - 1)]


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _place(mask: Mask) -> str:
    """Where in the frame a mask lies, in words."""
    rows, columns = np.nonzero(mask)
    if len(rows) > 0.25 * mask.size:
        return "over a large area"
    third_y = int(3 * rows.mean() / mask.shape[0])
    third_x = int(3 * columns.mean() / mask.shape[1])
    vertical, horizontal = ("top", "", "bottom")[third_y], ("left", "", "right")[third_x]
    return " ".join(word for word in (vertical, horizontal) if word) or "in the middle"


def _caption(rng: Rng, scene: Scene, defects: list[Instance]) -> str:
    shots = _GRAY_SHOTS if scene.gray and rng.random() < 0.3 else _SHOTS
    words = [scene.colour] if rng.random() < 0.6 else []
    if rng.random() < 0.6:
        words.append(scene.look)
    words.append(scene.category)
    kinds = list(dict.fromkeys(item.kind for item in defects))
    if not defects:
        state = _one(rng, _GOOD)
        tail = _one(rng, ("", "", "", " without defects", " without any damage", " in good order"))
        phrase = _article(" ".join([state, *words])) if rng.random() < 0.85 or not tail else (
            _article(" ".join(words)))
        text = phrase + tail
    else:
        named = " and ".join(_article(kind) if kind not in ("foreign texture", "uneven") else
                             {"uneven": "an uneven area"}.get(kind, "a foreign texture")
                             for kind in kinds)
        body = " ".join(words)
        form = rng.random()
        if form < 0.55:
            text = f"{_article(_one(rng, _BAD) + ' ' + body)} with {named}"
        elif form < 0.75:
            text = f"{_article(body)} with {named}"
        elif form < 0.88:
            text = f"{named} on {_article(body)}"
        else:
            text = f"{_article(_one(rng, _BAD) + ' ' + body)}"
        if rng.random() < 0.35:
            largest = max(defects, key=lambda item: int(item.mask.sum()))
            text += ", " + _place(largest.mask)
    shot = _one(rng, shots)
    return f"{shot} {text}".strip()


def _draw_kinds(rng: Rng, surface: bool) -> list[str]:
    """The kinds to try, outline defects first, so that nothing is drawn where they cut."""
    names = [kind for kind in DEFECT_KINDS if not (surface and kind in OUTLINE_KINDS)]
    weights = np.array([_WEIGHTS[name] for name in names])
    count = int(rng.choice(4, p=[0.58, 0.27, 0.1, 0.05])) + 1
    chosen = [str(name) for name in rng.choice(names, count, p=weights / weights.sum())]
    if rng.random() < 0.3:
        chosen = [chosen[0]] * count
    return sorted(chosen, key=lambda name: name not in OUTLINE_KINDS)


def make_sample(rng: np.random.Generator, size: int = 192, *, defect_rate: float = 0.7) -> Sample:
    """Draw one sample of size x size pixels; a share of defect_rate has at least one defect."""
    scene = make_scene(rng, size)
    canvas = scene.canvas
    defects: list[Instance] = []
    if rng.random() < defect_rate:
        for kind in _draw_kinds(rng, canvas.surface):
            for _ in range(3):
                found = add_defect(rng, canvas, kind)
                if found is not None:
                    defects.append(Instance(kind, found))
                    break
        if not defects:  # nothing was visible: a dark blob or a bright one always is
            for _ in range(20):
                found = add_defect(rng, canvas, "blob")
                if found is not None:
                    defects.append(Instance("blob", found))
                    break
    image = photograph(rng, light_up(rng, compose(rng, canvas)))
    kind_map = np.zeros((size, size), np.uint8)
    for item in defects:
        kind_map[item.mask] = 1 + DEFECT_KINDS.index(item.kind)
    parts = tuple(Instance(kind, mask) for kind, mask in scene.things)
    return Sample(image, (kind_map > 0).astype(np.uint8), kind_map, tuple(defects), parts,
                  scene.category, _caption(rng, scene, defects))


def sample_from_seed(seed: int, size: int = 192, *, defect_rate: float = 0.7) -> Sample:
    """The sample of one seed: same seed, same size, same rate, same bytes."""
    return make_sample(np.random.default_rng(seed), size, defect_rate=defect_rate)
