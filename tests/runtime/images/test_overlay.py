"""The overlay: what is below the limit is dark, whatever the limit is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipsam.runtime import Region, Result, overlay

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def result(level: float, limit: float) -> Result:
    """A map of one level, on which `limit` is the level that decides."""
    score_map = np.full((40, 50), level, np.float32)
    return Result(
        "good", level, limit, (), "object", 40, 50, 0, 0, False, "fixed", "", {},
        score_map=score_map, mask=score_map > 2, map_limit=limit,
    )  # fmt: skip


def heat(level: float, limit: float) -> float:
    """Mean change of the picture."""
    shown = overlay(IMAGE, result(level, limit)).astype(float)
    return float(np.abs(shown - IMAGE).mean())


@pytest.mark.parametrize("limit", [0.1, 0.5, 0.9])
def test_the_colours_are_anchored_at_the_limit(limit: float) -> None:
    assert heat(0.4 * limit, limit) < 1
    faint, strong = heat(0.98 * limit, limit), heat(limit + 0.9 * (1 - limit), limit)
    assert 5 < faint < strong / 2
    assert heat(limit, limit) <= heat((1 + limit) / 2, limit)


def test_a_limit_beyond_the_map_leaves_it_dark() -> None:
    assert heat(0.4, 1.2) < 1
    assert heat(0.0, 0.0) < 1


def test_regions_are_outlined() -> None:
    region = Region((10, 8, 11, 9), 99, (15, 12), ((10, 8), (20, 8), (20, 16), (10, 16)), 0.9)
    shown = overlay(IMAGE, replace(result(0.0, 0.5), regions=(region,)))
    changed = (shown != IMAGE).any(axis=2)
    assert changed[8, 12:18].all()
    assert not changed[11:14, 13:18].any()
