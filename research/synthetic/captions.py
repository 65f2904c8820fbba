"""English captions that say what is in a synthetic picture: category, look, state, place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipsam.research.synthetic.camera import Shot
from clipsam.research.synthetic.scenes import Scene
from clipsam.runtime.planting.canvas import Mask
from clipsam.runtime.planting.kinds import BY_NAME, DefectKind
from clipsam.runtime.planting.textures import Rng, choose

_GOOD = (
    "flawless",
    "flawless",
    "perfect",
    "perfect",
    "unblemished",
    "good",
    "undamaged",
    "intact",
    "normal",
    "clean",
)
_GOOD_TAILS = (
    "without flaw",
    "without defect",
    "without damage",
    "without defects",
    "without any damage",
    "in good order",
)
_BAD = (
    "damaged",
    "damaged",
    "damaged",
    "defective",
    "flawed",
    "faulty",
    "anomalous",
    "broken",
    "imperfect",
)
_BAD_TAILS = ("with flaw", "with defect", "with damage", "with a defect", "with defects")
_SHOTS = (
    "a photo of",
    "a photo of",
    "a close-up photo of",
    "a cropped photo of",
    "a picture of",
    "an image of",
    "an inspection image of",
    "an industrial photo of",
    "",
)
_PURPOSES = ("for visual inspection", "for anomaly detection")

_PLURAL = ("capsules", "macaroni")


def _article(rng: Rng, words: str) -> str:
    if rng.random() < 0.2:
        return "the " + words
    if words.endswith(_PLURAL):
        return words
    return ("an " if words[0] in "aeiou" and not words.startswith("uni") else "a ") + words


def _place(mask: Mask) -> str:
    rows, columns = np.nonzero(mask)
    if len(rows) > 0.25 * mask.size:
        return "over a large area"
    third_y = int(3 * rows.mean() / mask.shape[0])
    third_x = int(3 * columns.mean() / mask.shape[1])
    vertical, horizontal = ("top", "", "bottom")[third_y], ("left", "", "right")[third_x]
    return " ".join(word for word in (vertical, horizontal) if word) or "in the middle"


def _listed(rng: Rng, kinds: Sequence[DefectKind]) -> str:
    names = [
        kind.plural if kinds.count(kind) > 1 else choose(rng, kind.singular)
        for kind in dict.fromkeys(kinds)
    ]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _shot_words(rng: Rng, shot: Shot, gray: bool, brightness: float) -> str:
    """How the picture was taken; said only where it is true."""
    true = ["a bright photo of"] if brightness > 0.62 else []
    true += ["a dark photo of"] if brightness < 0.3 else []
    true += ["a blurry photo of"] if shot.blur > 0.9 * shot.gain.shape[0] / 192 else []
    true += ["a jpeg corrupted photo of"] if (shot.quality or 100) < 55 else []
    true += ["a grayscale photo of", "a black and white photo of"] if gray else []
    return choose(rng, tuple(true)) if true and rng.random() < 0.35 else choose(rng, _SHOTS)


def write_caption(
    rng: Rng, scene: Scene, brightness: float, defects: Sequence[tuple[str, Mask]]
) -> str:
    """One caption; brightness is the mean of the picture (0 to 1), defects are (kind, mask)."""
    words = [scene.colour] if rng.random() < 0.55 else []
    if rng.random() < 0.5:
        words.append(scene.look)
    body = " ".join([*words, scene.category])
    form = rng.random()
    if not defects:
        text = _article(rng, f"{choose(rng, _GOOD)} {body}")
        if form < 0.35:
            text = f"{_article(rng, body)} {choose(rng, _GOOD_TAILS)}"
        elif form < 0.45:
            text += " " + choose(rng, _GOOD_TAILS)
        elif form < 0.52:
            text = _article(rng, body)  # nothing said means nothing wrong
    else:
        named = _listed(rng, [BY_NAME[kind] for kind, _ in defects])
        bad = _article(rng, f"{choose(rng, _BAD)} {body}")
        if form < 0.4:
            text = f"{bad} with {named}"
        elif form < 0.6:
            text = f"{_article(rng, body)} with {named}"
        elif form < 0.7:
            text = f"{named} on {_article(rng, body)}"
        elif form < 0.85:
            text = bad
        else:
            text = f"{_article(rng, body)} {choose(rng, _BAD_TAILS)}"
        if rng.random() < 0.3:
            text += ", " + _place(max(defects, key=lambda item: int(item[1].sum()))[1])
    if rng.random() < 0.06:
        text += " " + choose(rng, _PURPOSES)
    return f"{_shot_words(rng, scene.shot, scene.gray, brightness)} {text}".strip()
