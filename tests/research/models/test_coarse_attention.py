"""Attention on a coarser grid: the same as the stock one where nothing is averaged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clipsam.research.models.coarse_attention import CoarseAttention
from clipsam.research.models.presets import build_clip

WIDTH, HEADS, GRID = 12, 3, 6


@pytest.fixture
def tokens() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 1 + GRID * GRID, WIDTH)


def pair(cell: int) -> tuple[nn.MultiheadAttention, CoarseAttention]:
    stock = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nn.init.normal_(stock.in_proj_bias)
    coarse = CoarseAttention(WIDTH, HEADS, cell)
    coarse.load_state_dict(stock.state_dict())  # the same names
    return stock, coarse


def test_cells_of_one_token_are_stock_attention(tokens: Tensor) -> None:
    stock, coarse = pair(1)
    expected = stock(tokens, tokens, tokens, need_weights=False)[0]
    found, weights = coarse(tokens, tokens, tokens, need_weights=False, attn_mask=None)
    assert weights is None
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cell", [2, 3])
def test_a_cell_s_tokens_get_what_stock_attention_gives_their_mean(
    tokens: Tensor, cell: int
) -> None:
    stock, coarse = pair(cell)
    found = coarse(tokens, tokens, tokens, need_weights=False, attn_mask=None)[0]
    side = GRID // cell
    cells = [
        tokens[
            :, [1 + (y * cell + i) * GRID + x * cell + j for i in range(cell) for j in range(cell)]
        ]
        for y in range(side)
        for x in range(side)
    ]
    means = torch.stack([tokens[:, 0], *(cell_tokens.mean(dim=1) for cell_tokens in cells)], dim=1)
    expected = stock(means, means, means, need_weights=False)[0]
    torch.testing.assert_close(found[:, 0], expected[:, 0])
    for y in range(GRID):
        for x in range(GRID):
            seen = expected[:, 1 + (y // cell) * side + x // cell]
            torch.testing.assert_close(found[:, 1 + y * GRID + x], seen)


def test_anything_but_plain_self_attention_is_refused(tokens: Tensor) -> None:
    _, coarse = pair(2)
    with pytest.raises(NotImplementedError, match="attends to itself"):
        coarse(tokens, tokens + 1, tokens, need_weights=False, attn_mask=None)


def test_the_tiny_tower_has_it_in_every_block() -> None:
    blocks = build_clip("tiny").visual.transformer.resblocks
    assert [type(block.attn) for block in blocks] == [CoarseAttention, CoarseAttention]
