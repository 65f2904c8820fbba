"""What a report knows of a part, whatever it was read from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.result import ANOMALOUS, GOOD, NOT_JUDGED
from clipsam.runtime.images.image import Image

MOST_BOXES = 32  # of a part; more are a carpet


@dataclass(frozen=True)
class Box:
    """A region's bounding box, in pixels of the image, its score, what it is called, and whether it
    was ignored for that."""

    x: float
    y: float
    width: float
    height: float
    score: float | None
    kind: str = ""
    ignored: bool = False


@dataclass(frozen=True)
class Part:
    """One part: the verdict on it, and where its pictures are.

    `score` and `limit` are on one scale, None where there is none; `taken` is in seconds since
    1970 (UTC), None where it was not recorded. `picture` and `score_map` may be missing from the
    disk; `overlay` is what stands in for both. `fetch`, where it is given, reads picture and map
    from elsewhere; threads call it. `ran` is what the verdict was made with.
    """

    name: str
    verdict: str
    score: float | None = None
    limit: float | None = None
    map_limit: float | None = None  # where the map passes the limit
    taken: float | None = None
    category: str = ""
    serial: str = ""
    label: str | None = None
    reasons: tuple[str, ...] = ()
    message: str = ""  # the sentence that goes with the reasons
    timings: Mapping[str, float] = field(default_factory=dict)
    sam: bool = False  # whether there was something for SAM to redraw
    late: bool = False
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None  # width, height
    ran: Mapping[str, str] = field(default_factory=dict)
    picture: Path | None = None
    sha256: str | None = None  # of the picture, which is shown only while it is that one
    score_map: Path | None = None
    overlay: Path | None = None
    fetch: Callable[[], tuple[Image | None, NDArray[np.float32] | None]] | None = None

    @property
    def excess(self) -> float:
        """Score as a multiple of the limit, the score alone without one: what sorts parts."""
        if self.score is None:
            return -math.inf
        return self.score / self.limit if self.limit else self.score


@dataclass(frozen=True)
class Event:
    """Something that happened to a station, such as an alarm, at `at` (seconds since 1970)."""

    at: float | None
    kind: str
    message: str


@dataclass(frozen=True)
class Usual:
    """Scores of good parts that a calibration saw, and the limit that it set."""

    scores: tuple[float, ...]
    limit: float


@dataclass(frozen=True)
class Run:
    """What a report is about: its parts in the order in which they came."""

    title: str
    parts: Sequence[Part]
    left_out: int = 0  # older parts than the most that were asked for
    events: Sequence[Event] = ()
    usual: Usual | None = None


Progress = Callable[[int, int], None]  # pictures read, and how many there will be


def worst_first(parts: Sequence[Part]) -> list[int]:
    """Indices: anomalous by how far over the limit, then not judged, then the others."""
    rank = {ANOMALOUS: 0, NOT_JUDGED: 1, GOOD: 2}
    return sorted(
        range(len(parts)), key=lambda i: (rank[parts[i].verdict], -parts[i].excess, parts[i].name)
    )


def ordered(parts: Iterable[Part]) -> list[Part]:
    """By time where every part has one, else as they came."""
    parts = list(parts)
    if all(part.taken is not None for part in parts):
        parts.sort(key=lambda part: part.taken or 0)
    return parts


def number(value: Any) -> float | None:
    """A finite number of a file, or None."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def text(value: Any) -> str:
    """A string of a file; lone surrogates, which no page can hold, become escapes."""
    return str("" if value is None else value).encode("utf-8", "backslashreplace").decode()


def timings_of(value: Any) -> dict[str, float]:
    """Stages and milliseconds of a file; what is no such thing is left out."""
    if not isinstance(value, Mapping):
        return {}
    return {text(k): ms for k, v in value.items() if (ms := number(v)) is not None and ms >= 0}


def boxes_of(regions: Any, ignored: Any = ()) -> tuple[Box, ...]:
    """Boxes of a file's first regions, and of those it ignored; what is no such thing is left
    out."""
    return (*_boxes(regions, False), *_boxes(ignored, True))


def _boxes(regions: Any, ignored: bool) -> Iterator[Box]:
    for region in regions[:MOST_BOXES] if isinstance(regions, list) else []:
        box = region.get("box") if isinstance(region, Mapping) else None
        corners = [number(v) for v in box] if isinstance(box, list) else []
        x, y, width, height = corners if len(corners) == 4 else [None] * 4
        if x is not None and y is not None and width is not None and height is not None:
            score, kind = number(region.get("score")), _kind(region.get("kinds"))
            yield Box(x, y, width, height, score, kind, ignored)


def _kind(kinds: Any) -> str:
    """The most probable word of a file's kinds."""
    known = {k: p for k, v in kinds.items() if (p := number(v))} if isinstance(kinds, dict) else {}
    return text(max(known, key=lambda word: known[word])) if known else ""
