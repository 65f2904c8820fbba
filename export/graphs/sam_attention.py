"""The attention of SAM's image encoder, written so that engines run it well; same numbers.

segment-anything's own module multiplies, adds relative positions and calls softmax: operators
over N x N scores that no engine fuses, 1 GiB each in a global block of ViT-H in float32. Let rel_h
[N,H] and rel_w [N,W] be what a query adds to its score with every row and every column of the grid.
Two exact rewrites call `scaled_dot_product_attention`, which a GPU can run as one kernel:

- `mask`: they become an additive mask, spread over the N = H x W keys. One N x N bias per head
  remains, 512 MiB in half precision for a global block of ViT-H.
- `mask-free`: they are appended to the query, and to every key a one-hot vector of its row and one
  of its column, so that the dot product adds them by itself; the values are padded with zeros.
  Nothing of size N x N is left outside the kernel, and a head grows from 80 to 208 channels in the
  global blocks of ViT-H, to 112 in its windows.

Which is faster is for a measurement on the device. The third is for a CPU, where such a kernel
gains nothing and memory is what runs short:

- `blocked`: the queries are taken a few rows of the grid at a time, and softmax is over a query's
  keys, so no more than `SLICE_SCORES` scores are there at once. In windows, the projections skip
  the tokens that pad the grid to whole windows, a sixth of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

ATTENTIONS = ("stock", "mask", "mask-free", "blocked")

HEAD_MULTIPLE = 8  # of channels; fused kernels take no other heads

# Of one slice of `blocked`, 64 MiB in float32: four rows of a global block of ViT-H or ViT-B, and
# every window whole. Smaller slices stay in the cache, but the exporter's time grows faster than
# their number: a global block of ViT-B takes 0.57 s with 16 slices and 0.55 with 48 (0.62 as
# published), its export 15 and 91 s.
SLICE_SCORES = 1 << 24

M = TypeVar("M", bound=nn.Module)


def usual_attention(precisions: Collection[str]) -> str:
    """One of `ATTENTIONS`, for bundles in these precisions: for those that are a GPU's the one that
    its kernels fuse without an N x N bias."""
    return "stock" if {"fp16", "bf16", "int8"}.isdisjoint(precisions) else "mask-free"


def with_attention(encoder: nn.Module, kind: str) -> nn.Module:
    """`encoder` with its attention written as `kind` says, one of `ATTENTIONS`; same numbers.

    MobileSAM's asks for attention in one call as it is, and is returned unchanged.
    The encoder given stays as it is; the one returned shares its weights. Raises ValueError for
    an unknown kind, or when a rewrite is asked of an encoder without relative positions.
    """
    if kind not in ATTENTIONS:
        raise ValueError(f"attention={kind!r}: use one of {', '.join(ATTENTIONS)}.")
    if kind == "stock" or not isinstance(encoder, ImageEncoderViT):
        return encoder
    rewritten = share_weights(encoder)
    rewrite = REWRITES[kind]
    for block in rewritten.blocks:
        if kind == "blocked" and block.window_size > 0:
            block.attn = WindowAttention(block.attn, block.window_size)
            block.window_size = 0  # the block need not make windows
        else:
            block.attn = rewrite(block.attn)
    found: nn.Module = rewritten
    return found


def share_weights(module: M) -> M:
    """A copy of a module's structure; parameters and buffers are the original's."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return deepcopy(module, {id(tensor): tensor for tensor in tensors})


class _Attention(nn.Module):
    """What the rewrites share: projections, heads, relative positions."""

    rel_h: Tensor
    rel_w: Tensor

    def __init__(self, stock: Attention) -> None:
        super().__init__()
        if not stock.use_rel_pos:
            raise ValueError("SAM's attention is rewritten for its relative positions only.")
        self.qkv, self.proj, self.heads = stock.qkv, stock.proj, stock.num_heads
        self.scale = float(stock.scale)
        for name, embedding in (("rel_h", stock.rel_pos_h), ("rel_w", stock.rel_pos_w)):
            side = (embedding.shape[0] + 1) // 2  # one row per distance -(side-1)..side-1
            table = get_rel_pos(side, side, embedding.detach())  # query, key, c
            self.register_buffer(name, table.transpose(1, 2).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B,H,W,C] -> the same; H x W is the grid the stock module was built for."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B,heads,N,c
        attended = self._attend(q, k, v, *self._positions(q))  # B,heads,N,c
        together = attended.transpose(1, 2).reshape(batch, height, width, -1)
        out: Tensor = self.proj(together)
        return out

    def _positions(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """[B,heads,N,c] -> what a query adds for every row [B,heads,N,H] and column [B,heads,N,W].

        `q` is not scaled, as in SAM.
        """
        grid = q.unflatten(2, (len(self.rel_h), len(self.rel_w)))
        to_columns = (grid.transpose(2, 3) @ self.rel_w).transpose(2, 3)
        return (grid @ self.rel_h).flatten(2, 3), to_columns.flatten(2, 3)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_cols: Tensor) -> Tensor:
        raise NotImplementedError


class MaskAttention(_Attention):
    """Relative positions as an additive mask."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_cols: Tensor) -> Tensor:
        bias = (to_rows.unsqueeze(4) + to_cols.unsqueeze(3)).flatten(3)  # B,heads,N,HW
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)


class MaskFreeAttention(_Attention):
    """Relative positions as further channels of queries and keys."""

    one_hot: Tensor

    def __init__(self, stock: Attention) -> None:
        super().__init__(stock)
        height, width, channels = len(self.rel_h), len(self.rel_w), self.rel_h.shape[1]
        self.padding = -(channels + height + width) % HEAD_MULTIPLE
        rows = torch.eye(height).repeat_interleave(width, dim=0)
        columns = torch.eye(width).repeat(height, 1)
        one_hot = F.pad(torch.cat([rows, columns], dim=1), (0, self.padding))  # N,H+W+padding
        self.register_buffer("one_hot", one_hot, persistent=False)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_cols: Tensor) -> Tensor:
        channels = q.shape[3]
        query = F.pad(torch.cat([q * self.scale, to_rows, to_cols], dim=3), (0, self.padding))
        key = torch.cat([k, self.one_hot.expand(*k.shape[:2], -1, -1)], dim=3)
        value = F.pad(v, (0, self.one_hot.shape[1]))  # one head size for all three
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :channels]


class BlockedAttention(_Attention):
    """A few rows of queries at a time."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_cols: Tensor) -> Tensor:
        batch, heads, queries, _ = q.shape
        height, width = len(self.rel_h), len(self.rel_w)
        rows = _rows_a_slice(height, batch * heads * width * queries) * width
        keys = k.transpose(2, 3)
        slices = zip(
            (q * self.scale).split(rows, dim=2),
            to_rows.unsqueeze(4).split(rows, dim=2),
            to_cols.unsqueeze(3).split(rows, dim=2),
            strict=True,
        )
        attended = []
        for query, by_row, by_column in slices:
            scores = (query @ keys).unflatten(3, (height, width)) + by_row + by_column
            attended.append(scores.flatten(3).softmax(dim=-1) @ v)
        return torch.cat(attended, dim=2) if len(attended) > 1 else attended[0]


class WindowAttention(BlockedAttention):
    """Attention within windows of a grid, with the windows made between the projections.

    SAM pads the grid with zeros to whole windows and then projects all of it. Here the tokens of
    the grid are projected alone, and padded after that. SAM's padding holds the projections'
    biases then, ours zeros, which comes to the same without the biases of keys and values: one of
    the keys adds the same to all scores of a query, and softmax takes it out; one of the values
    adds itself to every token, as the weights of the keys sum to 1, and so goes to the bias of the
    last projection.
    """

    def __init__(self, stock: Attention, window: int) -> None:
        super().__init__(stock)
        self.window = window
        queries, _, values = stock.qkv.bias.detach().chunk(3)
        zeros = torch.zeros_like(queries)
        self.qkv = _with_bias(stock.qkv, torch.cat([queries, zeros, zeros]))
        self.proj = _with_bias(stock.proj, stock.proj(values).detach())

    def forward(self, x: Tensor) -> Tensor:
        """[B,H,W,C] -> the same; any H x W."""
        batch, height, width, channels = x.shape
        side = self.window
        rows, columns = -(-height // side), -(-width // side)  # of windows
        padding = (0, 0, 0, columns * side - width, 0, rows * side - height)
        qkv = F.pad(self.qkv(x), padding)
        qkv = qkv.reshape(batch * rows, side, columns, side, 3, self.heads, -1)
        qkv = qkv.permute(4, 0, 2, 5, 1, 3, 6)  # 3,B*rows,columns,heads,side,side,c
        qkv = qkv.reshape(3, batch * rows * columns, self.heads, side * side, -1)
        q, k, v = qkv.unbind(0)  # B*windows,heads,N,c
        attended = self._attend(q, k, v, *self._positions(q))
        attended = attended.reshape(batch * rows, columns, self.heads, side, side, -1)
        together = attended.permute(0, 3, 1, 4, 2, 5)  # B*rows,side,columns,side,heads,c
        together = together.reshape(batch, rows * side, columns * side, channels)
        out: Tensor = self.proj(together[:, :height, :width])
        return out


def _with_bias(linear: nn.Linear, bias: Tensor) -> nn.Linear:
    """A linear layer that shares its weights and has another bias."""
    changed = share_weights(linear)
    changed.bias = nn.Parameter(bias, requires_grad=False)
    return changed


def _rows_a_slice(rows: int, scores: int) -> int:
    """The most rows of the grid that divide it and whose scores, `scores` a row, fit a slice."""
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and n * scores <= SLICE_SCORES]
    return max(fitting, default=1)


REWRITES: dict[str, type[_Attention]] = {
    "mask": MaskAttention,
    "mask-free": MaskFreeAttention,
    "blocked": BlockedAttention,
}
