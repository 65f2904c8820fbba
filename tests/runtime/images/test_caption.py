"""The caption below an overlay: what it says, at every size."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from clipsam.runtime.core.result import Region, Result
from clipsam.runtime.images import caption
from clipsam.runtime.images.caption import MOST_LISTED, ascii_of, captioned, fitted, width_of
from clipsam.runtime.images.overlay import overlay


def result(height: int, width: int, regions: int = 1, limit: float = 0.5) -> Result:
    box = (width // 4, height // 4, width // 4, height // 4)
    x, y, w, h = box
    outline = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
    region = Region(box=box, area=w * h, centroid=(x, y), contour=outline, score=0.9)
    scores = np.zeros((height, width), np.float32)
    scores[y : y + h, x : x + w] = 0.9
    return Result(
        verdict="anomalous", score=0.9, limit=limit, map_limit=limit, regions=(region,) * regions,
        category="object", height=height, width=width, prompts=1, dropped=0, refined=True,
        norm="fixed", bundle="b", timings={}, score_map=scores, mask=scores > 0.5,
    )  # fmt: skip


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is written."""
    words: list[str] = []
    real = caption.put

    def put(picture: Any, text: str, *rest: Any, **more: Any) -> None:
        words.append(text)
        real(picture, text, *rest, **more)

    monkeypatch.setattr(caption, "put", put)
    return words


@pytest.mark.parametrize("size", [(1, 1), (48, 64), (300, 40), (480, 640), (1500, 2000)])
def test_the_picture_stays_on_top_and_the_caption_fits(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    drawn = captioned(image, result(*size, regions=0), "part.png")
    factor = drawn.shape[1] // size[1]
    assert drawn.shape[1] == factor * size[1] >= 400
    assert drawn.shape[0] > factor * size[0] + 60
    top = drawn[: factor * size[0] : factor, ::factor]
    np.testing.assert_array_equal(top, overlay(image, result(*size, regions=0)))


def test_it_says_name_verdict_score_limit_and_every_region(said: list[str]) -> None:
    captioned(np.zeros((480, 640, 3), np.uint8), result(480, 640, regions=2), "line 1/part.png")
    assert said[-8:] == [
        "line 1/part.png", "anomalous", "score 0.900, limit 0.500", "0", "1", "limit",
        "1: 160 x 120 px at 160, 120, score 0.900", "2: 160 x 120 px at 160, 120, score 0.900",
    ]  # fmt: skip
    assert set(said[:-8]) == {"1", "2"}  # beside the regions


def test_many_regions_are_counted(said: list[str]) -> None:
    captioned(np.zeros((480, 640, 3), np.uint8), result(480, 640, regions=MOST_LISTED + 3), "a")
    assert said[-1] == "and 3 more"
    assert str(MOST_LISTED + 3) in said  # beside its region


@pytest.mark.parametrize("limit", [0.2, 0.5, 0.8])
def test_the_limit_stands_where_it_is_on_the_colours(limit: float) -> None:
    drawn = captioned(np.zeros((300, 800, 3), np.uint8), result(300, 800, 0, limit), "a")
    bar = drawn[300 + 47]  # just above the colours, where only the mark is
    (dark,) = np.nonzero(bar.sum(axis=1) < 200)
    assert abs(dark.mean() - (10 + limit * 779)) < 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("äöü/é.png", "aou/e.png"),
        ("部品.png", "\\u90e8\\u54c1.png"),
        ("a\nb\x00.png", "a\\x0ab\\x00.png"),
        (b"\xff.png".decode("utf-8", "surrogateescape"), "\\udcff.png"),
        ("plain.png", "plain.png"),
    ],
)
def test_names_become_letters_that_can_be_drawn(text: str, shown: str) -> None:
    assert ascii_of(text) == shown


def test_a_long_name_keeps_its_end() -> None:
    shown = fitted("x" * 300 + "/part-7.png", 200, 1)
    assert shown.startswith("...")
    assert shown.endswith("/part-7.png")
    assert width_of(shown, 1) <= 200


def test_a_word_is_really_drawn() -> None:
    picture = np.full((30, 200, 3), 255, np.uint8)
    caption.put(picture, "anomalous", (5, 20), 1)
    assert (picture < 128).any()
    assert cv2.boundingRect((picture[..., 0] < 200).astype(np.uint8))[2] <= width_of("anomalous", 1)
