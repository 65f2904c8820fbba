"""The attention of SAM's image encoder, written so that an engine can run it as one kernel.

segment-anything's own module multiplies, adds relative positions and calls softmax: operators
over N x N scores that no engine fuses. Two exact rewrites call `scaled_dot_product_attention`
instead. Let rel_h [N,H] and rel_w [N,W] be what a query adds to its score with every row and every
column of the grid:

- `mask`: they become an additive mask, spread over the N = H x W keys. One N x N bias per head
  remains, 512 MiB in half precision for a global block of ViT-H.
- `mask-free`: they are appended to the query, and to every key a one-hot vector of its row and one
  of its column, so that the dot product adds them by itself; the values are padded with zeros.
  Nothing of size N x N is left outside the kernel, and a head grows from 80 to 208 channels in the
  global blocks of ViT-H, to 112 in its windows.

Which is faster is for a measurement on the device.
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

ATTENTIONS = ("stock", "mask", "mask-free")

HEAD_MULTIPLE = 8  # of channels; fused kernels take no other heads

M = TypeVar("M", bound=nn.Module)


def with_attention(encoder: ImageEncoderViT, kind: str) -> ImageEncoderViT:
    """`encoder` with its attention written as `kind` says, one of `ATTENTIONS`; same numbers.

    The encoder given stays as it is; the one returned shares its weights. Raises ValueError for
    an unknown kind, or when a rewrite is asked of an encoder without relative positions.
    """
    if kind not in ATTENTIONS:
        raise ValueError(f"attention={kind!r}: use one of {', '.join(ATTENTIONS)}.")
    if kind == "stock":
        return encoder
    rewritten = share_weights(encoder)
    rewrite = {"mask": MaskAttention, "mask-free": MaskFreeAttention}[kind]
    for block in rewritten.blocks:
        block.attn = rewrite(block.attn)
    return rewritten


def share_weights(module: M) -> M:
    """A copy of a module's structure; parameters and buffers are the original's."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return deepcopy(module, {id(tensor): tensor for tensor in tensors})


class _SdpaAttention(nn.Module):
    """What both rewrites share: projections, heads, relative positions."""

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
        grid = q.unflatten(2, (height, width))
        to_rows = (grid @ self.rel_h).flatten(2, 3)  # B,heads,N,H
        to_columns = (grid.transpose(2, 3) @ self.rel_w).transpose(2, 3).flatten(2, 3)
        attended = self._attend(q, k, v, to_rows, to_columns)  # B,heads,N,c
        together = attended.transpose(1, 2).reshape(batch, height, width, -1)
        out: Tensor = self.proj(together)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_cols: Tensor) -> Tensor:
        raise NotImplementedError


class MaskAttention(_SdpaAttention):
    """Relative positions as an additive mask."""

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, to_rows: Tensor, to_cols: Tensor) -> Tensor:
        bias = (to_rows.unsqueeze(4) + to_cols.unsqueeze(3)).flatten(3)  # B,heads,N,HW
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)


class MaskFreeAttention(_SdpaAttention):
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
