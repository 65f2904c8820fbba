"""What stands below an overlay: name, verdict, score and limit, the colours, the regions.

Beside every region stand its number and what it is called.

OpenCV 4 draws ASCII alone: accents are dropped (ä becomes a), any other letter is written as its
escape (部 becomes \\u90e8).
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace

import cv2
import numpy as np

from clipsam.runtime.core.result import Region, Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.overlay import overlay

MOST_LISTED = 6  # regions; the others are counted
_LEAST_WIDTH = 400  # pixels, in which the words fit; a smaller picture is enlarged
_FONT = cv2.FONT_HERSHEY_SIMPLEX
INK, FAINT, PAPER = (30, 32, 36), (110, 114, 120), (250, 250, 248)  # RGB
# Told apart by people who do not see red or green; the words say the same.
VERDICT_COLOURS = {"good": (45, 105, 170), "anomalous": (190, 80, 0)}


def captioned(image: Image, result: Result, name: str) -> Image:
    """The overlay of `image` [H,W,3] with numbered regions and a caption, [H2,W2,3] uint8 RGB.

    The picture is at the top, enlarged by a whole factor where it is narrower than the words.
    """
    factor = math.ceil(_LEAST_WIDTH / image.shape[1])
    picture = overlay(image, result)
    if factor > 1:
        picture = np.asarray(
            cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST),
            np.uint8,
        )
    size = max(1.0, picture.shape[1] / 800)
    _number(picture, result, factor, size)
    return np.vstack([picture, _caption(picture.shape[1], size, result, name)])


def ascii_of(text: str) -> str:
    """The text in letters that OpenCV draws."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    shown = plain.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)


def put(
    picture: Image,
    text: str,
    at: tuple[float, float],
    size: float,
    colour: tuple[int, int, int] = INK,
    thick: int = 1,
) -> None:
    """Write ASCII at (x, baseline) in place; `size` 1 is about 10 pixels high."""
    place = (round(at[0]), round(at[1]))
    line = max(1, round(0.7 * thick * size + 0.2))
    cv2.putText(picture, text, place, _FONT, 0.45 * size, colour, line, cv2.LINE_AA)


def width_of(text: str, size: float) -> int:
    """Pixels that `put` takes."""
    (width, _), _ = cv2.getTextSize(text, _FONT, 0.45 * size, max(1, round(0.7 * size + 0.2)))
    return int(width)


def fitted(text: str, width: float, size: float) -> str:
    """The end of `text`, which tells names apart, in at most `width` pixels."""
    if width_of(text, size) <= width:
        return text
    while text and width_of(f"...{text}", size) > width:
        text = text[1:]
    return f"...{text}"


def _number(picture: Image, result: Result, factor: int, size: float) -> None:
    """Write each region's number and word beside its box; of what is ignored, the word alone."""
    marks = [(f"{n} {r.kind}".strip(), r) for n, r in enumerate(result.regions, start=1)]
    marks += [(f"({region.kind})", region) for region in result.ignored]
    for text, region in marks:
        word = ascii_of(text)
        wide = width_of(word, 1.4 * size)
        x, y, _, height = (side * factor for side in region.box)
        above = y >= 16 * size
        at = (max(2, x), y - 4 * size if above else y + height + 14 * size)
        at = (
            max(2, min(at[0], picture.shape[1] - wide - 2 * size)),
            min(at[1], picture.shape[0] - 4 * size),
        )
        for right, down in ((-1, 0), (1, 0), (0, -1), (0, 1)):  # an edge, on any background
            edge = (at[0] + 1.5 * right * size, at[1] + 1.5 * down * size)
            put(picture, word, edge, 1.4 * size, (0, 0, 0), thick=2)
        put(picture, word, at, 1.4 * size, (255, 255, 255), thick=2)


def _caption(width: int, size: float, result: Result, name: str) -> Image:
    margin, line = 10 * size, 20 * size
    listed = result.regions[:MOST_LISTED]
    more = len(result.regions) - len(listed)
    asked = _asked(result)
    lines = 3 + len(listed) + bool(more) + len(asked)
    strip = np.full((round(lines * line + 26 * size), width, 3), PAPER, np.uint8)
    put(strip, fitted(ascii_of(name), width - 2 * margin, size), (margin, line), size)
    colour = VERDICT_COLOURS.get(result.verdict, FAINT)
    verdict = ": ".join([result.verdict.replace("_", " "), *result.reasons[:1]])
    put(strip, verdict, (margin, 2 * line), size, colour=colour, thick=2)
    text = f"score {result.score:.3f}, limit {result.limit:.3f}"
    put(strip, text, (margin + width_of(verdict, size) + 16 * size, 2 * line), size)
    _colours(strip, result, margin, 2.5 * line, size)
    for number, region in enumerate(listed, start=1):
        x, y, w, h = region.box
        text = f"{number}: {w} x {h} px at {x}, {y}, score {region.score:.3f}{_kinds(region)}"
        text = fitted(ascii_of(text), strip.shape[1] - 2 * margin, size)
        put(strip, text, (margin, (3 + number) * line + 16 * size), size)
    if more:
        at = (margin, (4 + len(listed)) * line + 16 * size)
        put(strip, f"and {more} more", at, size, colour=FAINT)
    for number, text in enumerate(asked, start=4 + len(listed) + bool(more)):
        text = fitted(ascii_of(text), strip.shape[1] - 2 * margin, size)
        put(strip, text, (margin, number * line + 16 * size), size, colour=FAINT)
    return strip


def _kinds(region: Region) -> str:
    """The words for a region, the two most probable."""
    told = [f"{word} {100 * p:.0f} %" for word, p in list(region.kinds.items())[:2]]
    return ", " + ", ".join(told) if told else ""


def _asked(result: Result) -> list[str]:
    """What was asked for, and what was left out for that."""
    lines = []
    if result.look_for:
        lines.append(f"looked for: {', '.join(result.look_for)}")
    if result.ignore_kinds:
        lines.append(f"ignored kinds: {', '.join(result.ignore_kinds)}")
    if result.ignored:
        lines.append("ignored: " + ", ".join(region.kind for region in result.ignored))
    return lines


def _colours(strip: Image, result: Result, left: float, top: float, size: float) -> None:
    """The colours of the map from 0 to 1, drawn as the overlay draws them, with the limit."""
    wide, high = round(strip.shape[1] - 2 * left), round(10 * size)
    ramp = np.tile(np.linspace(0, 1, wide, dtype=np.float32), (high, 1))
    grey = np.full((high, wide, 3), 128, np.uint8)
    shown = replace(result, regions=(), ignored=(), score_map=ramp, mask=ramp > 1)
    x, y = round(left), round(top)
    strip[y : y + high, x : x + wide] = overlay(grey, shown)
    at = x + round(_map_limit(result) * (wide - 1))
    half = max(1, round(size))
    strip[y - round(3 * size) : y + high + round(3 * size), at - half : at + half] = INK
    for value, word in ((0.0, "0"), (1.0, "1"), (_map_limit(result), "limit")):
        middle = x + value * (wide - 1) - width_of(word, 0.85 * size) / 2
        place = min(max(middle, x), x + wide - width_of(word, 0.85 * size))
        put(strip, word, (place, y + high + 14 * size), 0.85 * size, colour=FAINT)


def _map_limit(result: Result) -> float:
    """Where on the map's scale a defect begins."""
    return min(max(result.map_limit, 0.0), 1.0)
