"""Names of regions: which tokens are looked at, and what the head says of them."""

from __future__ import annotations

import numpy as np
import pytest

from clipsam.runtime.stages.appearance import Cells
from clipsam.runtime.stages.naming import (
    MOST_TOKENS,
    PLACE,
    RING,
    SHAPE,
    UNKNOWN,
    Namer,
    NamingHead,
    look_at,
)

GRID, CELL, WIDTH, TEXT = 12, 4, 6, 5
PICTURE = np.random.default_rng(1).integers(0, 256, (GRID * CELL, GRID * CELL, 3)).astype(np.uint8)
CELLS = Cells.of(PICTURE, GRID)
EYE = (np.eye(WIDTH, TEXT, dtype=np.float32), np.zeros(TEXT, np.float32))


def mask(rows: slice, columns: slice, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    found = np.zeros(shape, np.bool_)
    found[rows, columns] = True
    return found


def test_the_tokens_under_a_region_are_inside_and_those_near_it_around() -> None:
    look = look_at(mask(slice(32, 48), slice(24, 40)), CELLS)  # tokens of 8 x 8 pixels
    ys, xs = np.divmod(look.index, GRID)
    inside = (ys >= 4) & (ys < 6) & (xs >= 3) & (xs < 5)
    np.testing.assert_array_equal(look.inside, inside)
    assert ys.min() == 4 - RING
    assert xs.max() == 4 + RING
    np.testing.assert_allclose(look.place[inside, 0], 1)
    np.testing.assert_allclose(look.place[~inside, 0], 0)


@pytest.mark.parametrize("shape", [(96, 96), (300, 700), (20, 30)])
def test_the_size_of_the_picture_changes_no_look(shape: tuple[int, int]) -> None:
    part = mask(slice(shape[0] // 2, None), slice(0, shape[1] // 2), shape)
    look, same = (look_at(m, CELLS) for m in (part, mask(slice(48, None), slice(0, 48))))
    np.testing.assert_array_equal(look.index, same.index)
    np.testing.assert_allclose(look.shape, same.shape, atol=0.05)


def test_a_line_thinner_than_any_token_is_looked_at_and_is_long() -> None:
    line = look_at(mask(slice(1000, 1001), slice(200, 1800), (2000, 2000)), CELLS)
    disc = look_at(mask(slice(900, 1100), slice(900, 1100), (2000, 2000)), CELLS)
    assert line.inside.any()
    assert line.shape[1] > disc.shape[1]  # length
    assert line.shape[2] < disc.shape[2]  # width to length


def test_of_a_region_over_the_whole_picture_not_every_token_is_looked_at() -> None:
    look = look_at(mask(slice(None), slice(None)), Cells.of(np.zeros((192, 192, 3), np.uint8), 48))
    assert len(look.index) == MOST_TOKENS
    assert look.inside.all()
    assert look.shape[4] == 1  # it touches the edge


def test_an_empty_region_is_refused() -> None:
    with pytest.raises(ValueError, match="pixels"):
        look_at(np.zeros((20, 20), np.bool_), CELLS)


def tokens_with(direction: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Tokens [GRID**2,WIDTH] that point in one direction within a mask of tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(GRID * GRID, WIDTH)) * 0.1
    tokens[inside] += direction
    return np.asarray(tokens / np.linalg.norm(tokens, axis=1, keepdims=True), np.float16)


@pytest.mark.parametrize("wanted", range(3))
def test_a_projection_finds_the_word_whose_feature_the_tokens_have(wanted: int) -> None:
    features = np.eye(3, TEXT, dtype=np.float32)
    inside = np.zeros(GRID * GRID, np.bool_)
    inside[[65, 66, 77, 78]] = True
    names = ("a", "b", "c")
    unknown = np.eye(TEXT, dtype=np.float32)[4]
    namer = Namer(names, features, NamingHead([EYE], [], unknown, 0.0, 20.0), GRID)
    region = mask(slice(40, 56), slice(40, 56))
    kinds = namer.kinds(tokens_with(np.eye(WIDTH)[wanted], inside), CELLS, region)
    assert next(iter(kinds)) == names[wanted]
    assert list(kinds.values()) == sorted(kinds.values(), reverse=True)
    assert sum(kinds.values()) == pytest.approx(1)
    assert set(kinds) == {*names, UNKNOWN}
    assert next(iter(namer.kinds(tokens_with(np.eye(WIDTH)[4], inside), CELLS, region))) == UNKNOWN


def test_a_trained_head_is_the_one_that_torch_trained() -> None:
    torch = pytest.importorskip("torch")
    naming = pytest.importorskip("clipsam.research.models.naming")
    task = pytest.importorskip("clipsam.research.training.naming_task")
    data = pytest.importorskip("clipsam.research.training.naming_data")
    torch.manual_seed(0)
    model = naming.Naming(WIDTH, TEXT).eval()
    tokens = tokens_with(np.ones(WIDTH), np.zeros(GRID * GRID, np.bool_))
    for part in (mask(slice(10, 50), slice(30, 60)), mask(slice(None), slice(None))):
        look = look_at(part, CELLS)
        assert (look.place.shape[1], look.shape.shape[0]) == (PLACE, SHAPE)
        region = data.NamedRegion(0, 0, 0, 1, tokens[look.index], look)
        with torch.no_grad():
            wanted = model.head(*task.head_inputs([region]))[0].numpy()
        np.testing.assert_allclose(model.numpy().embed(tokens, look), wanted, atol=1e-5)


def test_words_that_say_the_same_are_alike() -> None:
    features = np.zeros((3, TEXT), np.float32)
    features[0, 0] = features[2, 1] = 1
    features[1, :2] = 0.98, 0.199
    namer = Namer(("a", "b", "c"), features, NamingHead([], [], features[0], 0, 1), GRID)
    assert namer.alike(["a"]) == {"a", "b"}
    assert namer.alike(["c", UNKNOWN]) == {"c", UNKNOWN}
    assert namer.alike([]) == frozenset()


def test_tokens_under_a_mask_are_left_out_unless_they_are_all() -> None:
    namer = Namer((), np.zeros((0, TEXT), np.float32), None, GRID)  # type: ignore[arg-type]
    tokens = np.arange(GRID * GRID * WIDTH).reshape(-1, WIDTH).astype(np.float16)
    assert len(namer.without(tokens, mask(slice(0, 16), slice(0, 8)))) == GRID * GRID - 2
    assert len(namer.without(tokens, mask(slice(None), slice(None)))) == GRID * GRID
    assert namer.without(tokens, np.zeros((5, 5), np.bool_)) is tokens
