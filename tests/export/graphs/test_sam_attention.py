"""SAM's attention, rewritten: the same numbers as segment-anything's own module, and exportable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import (
    Attention,
    window_partition,
    window_unpartition,
)

from clipsam.export.graphs import sam_attention
from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.onnx_export import OPSETS, export_graph
from clipsam.export.graphs.sam_attention import (
    ATTENTIONS,
    REWRITES,
    BlockedAttention,
    MaskAttention,
    MaskFreeAttention,
    WindowAttention,
    with_attention,
)
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.parity.inputs import sam_encoder_cases
from clipsam.research.models.presets import Preset
from clipsam.runtime.backends.base import open_session

EXACT = 3e-6  # relative to the largest value


def _attention(side: int, dim: int = 48, heads: int = 3, seed: int = 0) -> Attention:
    """segment-anything's module on a side x side grid, its relative positions not zero."""
    torch.manual_seed(seed)
    module = Attention(dim, heads, use_rel_pos=True, input_size=(side, side)).eval()
    for parameter in (module.rel_pos_h, module.rel_pos_w):
        torch.nn.init.normal_(parameter)
    return module.requires_grad_(False)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def sam(small_preset: Preset) -> Sam:
    return Checkpoints(random_seed=3).load_sam(small_preset)[0]


@pytest.mark.parametrize("kind", REWRITES)
@pytest.mark.parametrize(("side", "batch"), [(14, 9), (32, 1), (6, 2)])
@pytest.mark.parametrize("scale", [1.0, 5.0])  # from flat to peaked attention
def test_a_block_says_what_the_stock_one_says(
    kind: str, side: int, batch: int, scale: float
) -> None:
    stock = _attention(side)
    x = scale * torch.randn(batch, side, side, 48, generator=torch.Generator().manual_seed(1))
    expected = stock(x)
    found = REWRITES[kind](stock)(x)
    assert found.shape == expected.shape
    assert _error(found, expected) <= EXACT


@pytest.mark.parametrize("kind", REWRITES)
def test_relative_positions_take_part(kind: str) -> None:
    """Without them, or with rows and columns exchanged, the numbers would differ by far."""
    stock = _attention(14)
    x = torch.randn(2, 14, 14, 48, generator=torch.Generator().manual_seed(1))
    rewritten = REWRITES[kind](stock)
    rewritten.rel_h, rewritten.rel_w = rewritten.rel_w, rewritten.rel_h
    assert _error(rewritten(x), stock(x)) > 0.01


@pytest.mark.parametrize("kind", REWRITES)
def test_the_rewritten_encoder_is_the_stock_encoder(kind: str, sam: Sam) -> None:
    """Windowed and global blocks; the window of 6 does not divide the grid of 16."""
    assert {block.window_size for block in sam.image_encoder.blocks} == {0, 6}
    *_, case = sam_encoder_cases(256)
    with torch.no_grad():
        expected = SamEncoderGraph(sam)(*case.feeds.values())
        found = SamEncoderGraph(sam, kind)(*case.feeds.values())
    assert _error(found, expected) <= EXACT


def test_the_encoder_given_stays_as_it_is(sam: Sam) -> None:
    encoder: Any = sam.image_encoder
    rewritten: Any = with_attention(encoder, "mask-free")
    assert with_attention(sam.image_encoder, "stock") is sam.image_encoder
    for old, new in zip(encoder.blocks, rewritten.blocks, strict=True):
        assert isinstance(old.attn, Attention)
        assert isinstance(new.attn, MaskFreeAttention)
        assert new.attn.qkv.weight is old.attn.qkv.weight  # not a second copy of ViT-H
        assert new.mlp.lin1.weight is old.mlp.lin1.weight


@pytest.mark.parametrize(("side", "channels"), [(64, 208), (14, 112)])
def test_attention_is_the_same_at_vit_hs_head_sizes(side: int, channels: int) -> None:
    module = MaskFreeAttention(_attention(side, dim=80, heads=1))
    assert 80 + module.one_hot.shape[1] == channels
    assert channels % 8 == 0


def test_what_cannot_be_rewritten_is_said(sam: Sam) -> None:
    with pytest.raises(ValueError, match="attention='flash': use one of stock, mask, mask-free"):
        with_attention(sam.image_encoder, "flash")
    plain = Attention(48, 3, use_rel_pos=False)
    with pytest.raises(ValueError, match="for its relative positions only"):
        MaskAttention(plain)


def _slices(
    monkeypatch: pytest.MonkeyPatch, module: BlockedAttention, x: torch.Tensor
) -> list[int]:
    """How many queries each slice has when `module` runs on `x`."""
    found: list[int] = []
    softmax = torch.Tensor.softmax

    def spy(scores: torch.Tensor, dim: int) -> torch.Tensor:
        found.append(scores.shape[-2])
        return softmax(scores, dim)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "softmax", spy)
        module(x)
    return found


@pytest.mark.parametrize(
    ("limit", "queries"),
    [
        (1 << 24, [36]),
        (2 * 3 * 18 * 36, [18, 18]),
        (2 * 3 * 17 * 36, [12, 12, 12]),  # slices are equal and of whole rows
        (1, [6] * 6),  # never less than a row
    ],
)
def test_slices_bound_the_scores(
    limit: int, queries: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = _attention(6)
    x = torch.randn(2, 6, 6, 48, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(sam_attention, "SLICE_SCORES", limit)
    module = BlockedAttention(stock)
    assert _slices(monkeypatch, module, x) == queries
    assert _error(module(x), stock(x)) <= EXACT


@pytest.mark.parametrize("heads", [12, 16])
def test_the_published_encoders_are_cut_into_slices(heads: int) -> None:
    """A global block of ViT-B, L and H takes 16 slices; all windows of a block are one."""
    assert sam_attention._rows_a_slice(64, heads * 64 * 64 * 64) == 4
    assert sam_attention._rows_a_slice(14, 25 * heads * 14 * 14 * 14) == 14


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 14, 14), (1, 9, 23)])
def test_windows_are_the_stock_ones(shape: tuple[int, int, int]) -> None:
    """Also where nothing is padded, and with biases that are far from zero."""
    stock, side = _attention(7), 7
    torch.nn.init.normal_(stock.qkv.bias, std=3.0)
    x = torch.randn(*shape, 48, generator=torch.Generator().manual_seed(1))
    windows, padded = window_partition(x, side)
    expected = window_unpartition(stock(windows), side, padded, shape[1:])
    found = WindowAttention(stock, side)(x)
    assert found.shape == expected.shape
    assert _error(found, expected) <= EXACT


def test_blocked_keeps_the_weights_and_the_encoder_given(sam: Sam) -> None:
    encoder: Any = sam.image_encoder
    rewritten: Any = with_attention(encoder, "blocked")
    kinds = [type(block.attn) for block in rewritten.blocks]
    assert kinds == [WindowAttention, BlockedAttention]
    assert [block.window_size for block in encoder.blocks] == [6, 0]
    for old, new in zip(encoder.blocks, rewritten.blocks, strict=True):
        assert new.attn.qkv.weight is old.attn.qkv.weight
        assert new.attn.proj.weight is old.attn.proj.weight
        assert bool(old.attn.qkv.bias[48:].any())  # not zeroed in place


@pytest.mark.slow  # exports
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_every_attention_exports_and_agrees_with_pytorch(
    kind: str, opset: int, sam: Sam, tmp_path: Path
) -> None:
    module, path = SamEncoderGraph(sam, kind), tmp_path / "sam_encoder.onnx"
    *_, case = sam_encoder_cases(256)
    export_graph(module, case.feeds, {}, ["embedding"], path, opset)

    with torch.no_grad():
        expected = SamEncoderGraph(sam)(*case.feeds.values()).numpy()
    with open_session(path, threads=1) as session:
        found = session.run({name: tensor.numpy() for name, tensor in case.feeds.items()})
    error = np.abs(found["embedding"] - expected).max() / np.abs(expected).max()
    assert error <= EXACT

    attentions = [node for node in onnx.load(path).graph.node if node.op_type == "Attention"]
    if opset < 23 or kind in ("stock", "blocked"):
        assert not attentions
        return
    assert len(attentions) == len(sam.image_encoder.blocks)  # one node per attention
    inputs = {"mask": 4, "mask-free": 3}[kind]  # with and without a bias
    assert {len(node.input) for node in attentions} == {inputs}
    precision = {a.name: a.i for node in attentions for a in node.attribute}["softmax_precision"]
    assert precision == onnx.TensorProto.FLOAT
