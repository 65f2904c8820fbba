"""Half precision, decided in the graph: what is half and what stays float32 is cast explicitly.

TensorRT's networks are strongly typed, so an engine is as precise as its graph. Here a graph's
module is rewritten before it is exported, by one rule: **a layer computes in the dtype of its
weights**, and what reaches it is cast there. Then

- weights become half, except those of the normalisations and of the layers that the graph names
  in `keep_float32`;
- normalisations (layer, instance, batch, group, and SAM's LayerNorm2d, whose squared deviations
  leave half's range above 256) take their input in float32 and return half;
- softmax, vector norms and means are computed in float32 and returned in the dtype they came in;
- inputs and outputs of the graph keep their dtypes: its module casts what it returns.

`stash_type` of ONNX's LayerNormalization is not relied on: the casts are nodes of the graph, and
hold for every engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

# Modules that work in float32 and return the dtype they were given.
IN_FLOAT32: tuple[type[nn.Module], ...] = (
    nn.LayerNorm, LayerNorm2d, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.BatchNorm1d, nn.BatchNorm2d,
)  # fmt: skip
# Functions that do the same.
_FUNCTIONS_IN_FLOAT32 = {
    torch.softmax, F.softmax, Tensor.softmax, F.normalize, torch.mean, Tensor.mean,
}  # fmt: skip
# Functions (input, weight, ...) whose input is cast to the dtype of the weight.
_LAYERS = {
    F.linear, F.conv1d, F.conv2d, F.conv_transpose2d,
}  # fmt: skip


# SAM's relative positions (tokens x table -> score of every row, of every column) as plain
# products: ONNX has no Einsum of bf16.
_PRODUCTS = {
    "bhwc,hkc->bhwk": lambda x, table: x @ table.mT,
    "bhwc,wkc->bhwk": lambda x, table: (x.transpose(1, 2) @ table.mT).transpose(1, 2),
}


class HalfPrecision(nn.Module):
    """A graph's module in half precision: same inputs and outputs, float32 where it matters.

    Args:
      graph: a module of `export/`, in float32. Its attribute `keep_float32`, if it has one, names
        layers and tensors that stay float32, as patterns of qualified names. It is not changed.
      precision: "fp16" or "bf16".
      fused_attention: leave `scaled_dot_product_attention` whole, for operator sets that have
        one operator for it; otherwise it is written out, its softmax in float32.
      in_float32: the modules that stay float32, so that a test can show what they are for.
    """

    def __init__(
        self,
        graph: nn.Module,
        precision: str,
        fused_attention: bool = False,
        in_float32: tuple[type[nn.Module], ...] = IN_FLOAT32,
    ) -> None:
        super().__init__()
        self.fused_attention = fused_attention
        keep: Sequence[str] = getattr(graph, "keep_float32", ())
        self.module = deepcopy(graph, _cast_tensors(graph, DTYPES[precision], in_float32, keep))
        _replace_modules(self.module, in_float32)
        self.eval().requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Any:
        """The graph's inputs and outputs, float32 as they were."""
        with _Casts(self.fused_attention):
            return self.module(*inputs)


def _cast_tensors(
    graph: nn.Module, dtype: torch.dtype, in_float32: tuple[type, ...], keep: Iterable[str]
) -> dict[int, Any]:
    """What takes the place of each tensor, for `deepcopy`: itself, or half of it."""
    above = [f"{name}." for name, module in graph.named_modules() if isinstance(module, in_float32)]
    memo: dict[int, Any] = {}
    for name, tensor in itertools.chain(graph.named_parameters(), graph.named_buffers()):
        kept = not tensor.is_floating_point() or name.startswith(tuple(above))
        kept = kept or any(fnmatch(name, p) or fnmatch(name, f"{p}.*") for p in keep)
        value = tensor.detach() if kept else tensor.detach().to(dtype)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(value, requires_grad=False) if is_parameter else value
    return memo


def _replace_modules(module: nn.Module, in_float32: tuple[type, ...]) -> None:
    for name, child in module.named_children():
        if isinstance(child, in_float32):
            setattr(module, name, _InFloat32(child))
        elif isinstance(child, nn.MultiheadAttention):
            setattr(module, name, _SelfAttention(child))
        else:
            _replace_modules(child, in_float32)


class _InFloat32(nn.Module):
    """A float32 module between half ones."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        found: Tensor = self.module(x.float(), *(other.float() for other in others))
        return found.to(x.dtype)


class _SelfAttention(nn.Module):
    """open_clip's `nn.MultiheadAttention`, in calls that `_Casts` sees one by one."""

    def __init__(self, stock: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = stock.in_proj_weight, stock.in_proj_bias
        self.out_proj, self.heads = stock.out_proj, stock.num_heads

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, attn_mask: None
    ) -> tuple[Tensor, None]:
        """[B,N,C] three times the same tensor -> [B,N,C], and no weights."""
        if key is not query or value is not query or need_weights or attn_mask is not None:
            raise NotImplementedError("CLIP's image tower attends to itself, without a mask.")
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)  # B,heads,N,c
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out, None


class _Casts(TorchFunctionMode):
    """Puts the casts around the functions that a module calls."""

    def __init__(self, fused_attention: bool) -> None:
        super().__init__()
        self._fused_attention = fused_attention

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS:
            first, weight, *rest = args
            return func(first.to(weight.dtype), weight, *rest, **kwargs)
        if func in _FUNCTIONS_IN_FLOAT32:
            first, *rest = args
            return func(first.float(), *rest, **kwargs).to(first.dtype)
        if func is torch.einsum and args[0] in _PRODUCTS:
            return _PRODUCTS[args[0]](*args[1:])
        if func is F.scaled_dot_product_attention and not self._fused_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """`scaled_dot_product_attention` with its softmax in float32.

    The scale goes to the queries before the product, where TensorRT wants it.
    """
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.float().softmax(dim=-1).to(v.dtype) @ v
