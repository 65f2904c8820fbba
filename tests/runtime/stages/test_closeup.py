"""A region close up: what is shown of it, and against what."""

from __future__ import annotations

import numpy as np
import pytest

from clipsam.runtime.stages.closeup import CHANNELS, SIDE, close_up, convolve, network_input

SIZE = 96
PICTURE = np.full((SIZE, SIZE, 3), 100, np.uint8)


def cover(rows: slice, columns: slice) -> np.ndarray:
    found = np.zeros((SIZE, SIZE), np.float32)
    found[rows, columns] = 1
    return found


def test_a_region_lies_in_the_middle_half_as_much_again_is_shown() -> None:
    shown = close_up(PICTURE, cover(slice(28, 68), slice(38, 58)))  # 40 long, so 60 are shown
    region = shown[..., 3] > 127
    rows, columns = np.nonzero(region.any(axis=1))[0], np.nonzero(region.any(axis=0))[0]
    assert abs(len(rows) - SIDE * 40 / 60) <= 1
    assert abs(len(columns) - SIDE * 20 / 60) <= 1
    assert abs(rows.mean() - (SIDE - 1) / 2) <= 1
    assert abs(columns.mean() - (SIDE - 1) / 2) <= 1
    assert (shown[..., 4] == 255).all()


def test_a_small_region_is_not_blown_up_without_bound() -> None:
    shown = close_up(PICTURE, cover(slice(50, 51), slice(50, 51)))
    assert 1 <= (shown[..., 3] > 127).sum() <= (SIDE / 24 + 1) ** 2


def test_beyond_the_edge_nothing_is_there() -> None:
    shown = close_up(PICTURE, cover(slice(0, 10), slice(40, 60)))
    there = shown[..., 4] == 255
    assert not there[:4].any()
    assert there[SIDE // 2 :].all()
    assert (network_input(shown[None])[0, :4, :, :4] == 0).all()


def test_the_surroundings_are_half_the_picture_wide() -> None:
    picture = PICTURE.copy()
    picture[:, 60:] = 200  # 10 pixels right of the middle, as seen 40 x 10 / 48
    shown = close_up(picture, cover(slice(44, 52), slice(46, 54)))[..., 5:]
    assert shown[0, SIDE // 2 + 7, 0] == 100
    assert shown[0, SIDE // 2 + 10, 0] == 200
    assert (shown[..., 4] == 255).all()


def test_of_a_region_over_the_whole_picture_all_is_shown() -> None:
    shown = close_up(PICTURE, np.ones((SIZE, SIZE), np.float32))
    values = network_input(shown[None])
    assert values.shape == (1, SIDE, SIDE, CHANNELS)
    assert np.isfinite(values).all()


def test_a_thin_faint_region_is_shown_where_it_is() -> None:
    faint = cover(slice(20, 80), slice(47, 48)) * np.float32(0.1)
    shown = close_up(PICTURE, faint)
    assert shown[:, SIDE // 2 - 1 : SIDE // 2 + 1, 3].max() > 0
    assert shown[:, : SIDE // 4, 3].max() == 0


@pytest.mark.parametrize("brighter", [0, 60])
def test_what_counts_is_the_difference_from_what_surrounds_it(brighter: int) -> None:
    picture = PICTURE + np.uint8(brighter)
    picture[40:56, 40:56] += np.uint8(30)
    shown = close_up(picture, cover(slice(40, 56), slice(40, 56)))
    colours = network_input(shown[None])[0, ..., :3]
    assert colours[SIDE // 2, SIDE // 2] == pytest.approx(3 * 30 / 255, abs=0.01)
    assert colours[0, 0] == pytest.approx(0, abs=0.01)


def test_convolutions_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIDE, SIDE, CHANNELS)).astype(np.float32)
    layers, wanted = [], torch.from_numpy(x).permute(2, 0, 1)[None]
    for number, (before, after) in enumerate([(CHANNELS, 5), (5, 5), (5, 7), (7, 7)]):
        weight = rng.normal(size=(after, before, 3, 3)).astype(np.float32)
        bias = rng.normal(size=after).astype(np.float32)
        layers.append((weight.transpose(2, 3, 1, 0).reshape(-1, after), bias))
        if number == 2:
            wanted = torch.nn.functional.max_pool2d(wanted, 2)
        seen = torch.nn.functional.conv2d(
            wanted, torch.from_numpy(weight), torch.from_numpy(bias), padding=1
        ).relu()
        wanted = wanted + seen if before == after else seen
    wanted = torch.cat([wanted.mean(dim=(2, 3)), wanted.amax(dim=(2, 3))], dim=1)[0]
    np.testing.assert_allclose(convolve(x, layers), wanted.numpy(), rtol=1e-4, atol=1e-4)
