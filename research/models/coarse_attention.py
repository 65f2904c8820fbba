"""Self-attention of a square grid of tokens on a coarser grid.

Attention costs the square of the number of tokens, and `tiny` has 2,305 of them: some 40 % of the
time of a look. What it adds to a token is what the rest of the picture says, which changes slowly
over the picture (what is particular to a place, the convolutions of the embedding have seen), so
it is computed among averages of `cell` x `cell` tokens and given to each of them.
"""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CoarseAttention(nn.Module):
    """Takes the place of an `nn.MultiheadAttention` of open_clip's image tower, whose parameters it
    has under the same names.

    Args:
      width: channels of a token.
      heads: that share them.
      cell: tokens a side that are averaged; the grid must be a multiple of it.
    """

    def __init__(self, width: int, heads: int, cell: int) -> None:
        super().__init__()
        stock = nn.MultiheadAttention(width, heads)  # initialised as it is
        self.in_proj_weight, self.in_proj_bias = stock.in_proj_weight, stock.in_proj_bias
        self.out_proj = stock.out_proj
        self.heads, self.cell = heads, cell

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: None
    ) -> tuple[Tensor, None]:
        """[B,1+g*g,C] three times the same tensor, the class token first -> the same shape, and no
        weights."""
        if key is not query or value is not query or need_weights or attn_mask is not None:
            raise NotImplementedError("CLIP's image tower attends to itself, without a mask.")
        side = isqrt(query.shape[1] - 1)
        grid = query[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # B,C,g,g
        cells = F.avg_pool2d(grid, self.cell).flatten(2).transpose(1, 2)
        x = torch.cat([query[:, :1], cells], dim=1)
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)  # B,heads,1+n,c
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        coarse = side // self.cell
        seen = out[:, 1:].transpose(1, 2).unflatten(2, (coarse, coarse))
        seen = F.interpolate(seen, scale_factor=float(self.cell), mode="nearest")
        return torch.cat([out[:, :1], seen.flatten(2).transpose(1, 2)], dim=1), None
