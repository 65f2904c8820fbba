"""Tiles: where the windows lie, how their maps become one, held against a plain restatement."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.toy_bundle import CLIP_SIZE, plain_part

from clipsam.runtime import CalibrationError, ClipSAM, InspectOptions, OptionError, Result
from clipsam.runtime.calibration.record import Calibration, Promise
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.tiles import AUTO_MOST, Axis, Grid, check_tiles, choose_grid

S, TOKENS = 64, 8


@pytest.fixture(scope="module")
def tiled(toy: Path) -> Iterator[ClipSAM]:
    with ClipSAM.open(toy, threads=1, options=InspectOptions(tiles="3x2")) as model:
        yield model


def with_speck(side: int = 8) -> NDArray[np.uint8]:
    """A large dark part with a bright spot that one look averages away."""
    image = plain_part(600, 900)
    image[300 : 300 + side, 400 : 400 + side] = 255
    return image


@pytest.mark.parametrize("side", [64, 200, 201, 1000, 8191])
@pytest.mark.parametrize("windows", [1, 2, 3, 7])
def test_windows_cover_a_side_and_overlap(side: int, windows: int) -> None:
    axis = Axis(side, windows)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.length == side
    for first, second in pairwise(axis.starts):
        assert first + axis.length - second >= 0.2 * axis.length


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_the_weights_of_a_side_add_up_to_one_everywhere(windows: int) -> None:
    axis = Axis(333, windows)
    total = np.zeros(333)
    for start, weights in zip(axis.starts, axis.weights(), strict=True):
        total[start : start + axis.length] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_blending_is_the_weighted_mean_of_the_windows() -> None:
    grid = Grid(Axis(90, 3), Axis(70, 2))
    maps = np.random.default_rng(0).random((6, 16, 16), np.float32)
    above, below = np.zeros((70, 90)), np.zeros((70, 90))
    for small, (rows, columns) in zip(maps, grid.windows(), strict=True):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        hann = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (high, wide)))
        above[rows, columns] += hann * cv2.resize(small, (wide, high))
        below[rows, columns] += hann
    np.testing.assert_allclose(grid.blend(maps), above / below, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (100, 100), (110, 2000), (3000, 2000)])
@pytest.mark.parametrize("option", ["auto", "2x2", "8x8", "1x64"])
def test_no_window_is_smaller_than_clips_input(shape: tuple[int, int], option: str) -> None:
    grid = choose_grid(option, shape, S, TOKENS)
    assert min(grid.across.length, grid.down.length) >= S


def test_auto_grows_with_the_picture_up_to_its_ceiling() -> None:
    counts = [len(choose_grid("auto", (n, n), S, TOKENS)) for n in (64, 128, 256, 1024, 7000)]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] == AUTO_MOST
    wide = choose_grid("auto", (500, 8000), S, TOKENS)
    assert wide.across.windows > 4 * wide.down.windows
    assert len(wide) <= AUTO_MOST


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((1826, 2739), "3x2"),  # 4x2 would be 5 % finer
        ((2048, 2448), "3x2"),  # 3x3: 20 %
        ((2048, 2048), "3x3"),  # 43 %
        ((700, 1050), "3x2"),  # the fewest in which a token covers 8 pixels
    ],
)
def test_auto_spends_no_tiles_on_a_little_more(shape: tuple[int, int], grid: str) -> None:
    assert str(choose_grid("auto", shape, 192, 48)) == grid


@pytest.mark.parametrize("text", ["", "on", "2", "0x2", "2x", "9x9", "-1x2", "2x2x2", "100x1"])
def test_other_tiles_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="tiles"):
        check_tiles(text)


def test_one_tile_is_none() -> None:
    assert check_tiles("1x1") == "off"
    assert InspectOptions(tiles="1x1").settings() == {} == InspectOptions(tiles="off").settings()
    assert InspectOptions(tiles="3X2").settings() == {"tiles": "3x2"}


def test_tiles_find_a_defect_that_one_look_misses(toy: Path, tiled: ClipSAM) -> None:
    image = with_speck()
    with ClipSAM.open(toy, threads=1) as model:
        once = model.inspect(image)
    result = tiled.inspect(image)
    assert (once.tiles, once.verdict) == ("off", "good")
    assert (result.tiles, result.verdict) == ("3x2", "anomalous")
    x, y, width, height = result.regions[0].box
    assert x <= 404 < x + width
    assert y <= 304 < y + height
    assert result.min_area < once.min_area  # of what CLIP looks at


def test_the_map_is_the_geometric_mean_of_one_look_and_the_tiles(toy: Path, tiled: ClipSAM) -> None:
    """The toy's map of a look is its brightness."""
    image = with_speck(60)
    height, width = image.shape[:2]

    def look(view: NDArray[np.uint8]) -> NDArray[np.float64]:
        grey = clip_input(view, CLIP_SIZE)[0].mean(axis=2) / 255
        return np.asarray(cv2.resize(grey, (view.shape[1], view.shape[0])), np.float64)

    grid = Grid(Axis(width, 3), Axis(height, 2))
    above, below = np.zeros((height, width)), np.zeros((height, width))
    for rows, columns in grid.windows():
        view = np.ascontiguousarray(image[rows, columns])
        hann = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in view.shape[:2]))
        above[rows, columns] += hann * look(view)
        below[rows, columns] += hann
    expected = np.sqrt(look(image) * above / below)
    result = tiled.inspect(image, deadline_ms=0)  # without SAM the map is O_f
    np.testing.assert_allclose(result.score_map * 4, expected, atol=2e-3)


def test_a_small_picture_has_no_tiles_and_the_same_bits(toy: Path, tiled: ClipSAM) -> None:
    image = plain_part(70, 70)
    image[20:50, 20:50] = 250
    with ClipSAM.open(toy, threads=1) as model:
        once = model.inspect(image)
    again = tiled.inspect(image)
    assert again.tiles == "off"
    _same(again, once)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_line_gives_what_inspect_gives(tiled: ClipSAM, batch: int) -> None:
    parts = [with_speck(), plain_part(80, 70), with_speck(50), plain_part(300, 400)]
    found = [part.result() for part in tiled.inspect_many(parts, batch=batch)]
    assert [result.tiles for result in found] == ["3x2", "off", "3x2", "3x2"]
    for part, result in zip(parts, found, strict=True):
        _same(result, tiled.inspect(part), exact=batch == 1)


def test_tiles_are_those_of_the_roi(toy: Path) -> None:
    image = with_speck()
    options = InspectOptions(tiles="2x2", roi=(300, 200, 200, 200))
    with ClipSAM.open(toy, threads=1, options=options) as model:
        result = model.inspect(image)
    assert result.tiles == "2x2"
    assert not result.score_map[:200].any()
    y, x = np.unravel_index(result.score_map.argmax(), result.score_map.shape)
    assert 295 <= y <= 312
    assert 395 <= x <= 412


def test_a_calibration_brings_its_tiles_and_allows_no_others(toy: Path) -> None:
    with ClipSAM.open(toy, threads=1) as model:
        identity = model.bundle.id
    promise = Promise(0.05, 0.95, 59, 0, 0)
    made = Calibration(identity, "object", 0.3, promise, {}, {"tiles": "2x2"})
    known = Calibration.from_bytes(made.to_bytes())
    with ClipSAM.open(toy, threads=1, calibration=known) as model:
        assert model.inspect(with_speck()).tiles == "2x2"
    for other in ("off", "auto", "3x3"):
        with pytest.raises(CalibrationError, match=r"another --tiles \(2x2\)"):
            ClipSAM.open(toy, options=InspectOptions(tiles=other), calibration=known)
    plain = Calibration(identity, "object", 0.3, promise, {})
    with pytest.raises(CalibrationError, match=r"another --tiles \(none\)"):
        ClipSAM.open(toy, options=InspectOptions(tiles="2x2"), calibration=plain)
    with ClipSAM.open(toy, options=InspectOptions(tiles="off"), calibration=plain) as model:
        assert model.inspect(with_speck()).tiles == "off"


def test_a_calibration_with_foreign_tiles_is_refused() -> None:
    made = Calibration(
        "b", "object", 0.3, Promise(0.05, 0.95, 59, 0, 0), {}, {"tiles": "everywhere"}
    )
    with pytest.raises((OptionError, ValueError, CalibrationError), match="tiles"):
        Calibration.from_bytes(made.to_bytes())


def _same(result: Result, other: Result, exact: bool = True) -> None:
    tolerance = 0 if exact else 1e-6
    np.testing.assert_allclose(result.score_map, other.score_map, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(result.mask, other.mask)
    assert abs(result.score - other.score) <= tolerance
    assert result.verdict == other.verdict
