"""MobileSAM's encoder: its shapes, its tensors by their published names, and its graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipsam.export.graphs.onnx_export import export_graph
from clipsam.export.graphs.sam_attention import ATTENTIONS, with_attention
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.quantization.half import HalfPrecision
from clipsam.research.models.checkpoints import load_sam
from clipsam.research.models.mobile_sam import TinyVitEncoder
from clipsam.research.models.presets import PRESETS, SamConfig, build_sam, parameter_count
from clipsam.runtime.core.errors import WeightsError

SMALL = SamConfig(image_size=128, prompt_dim=32, mlp_dim=16, tiny_vit=True)


def _norm(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{part}", (size,)) for part in ("weight", "bias"))


def _conv(
    name: str, out: int, given: int, side: int, groups: int = 1
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A convolution `c` and its batch normalisation `bn`, as MobileSAM names them."""
    yield f"{name}.c.weight", (out, given // groups, side, side)
    yield from _norm(f"{name}.bn", out)
    yield from ((f"{name}.bn.running_{part}", (out,)) for part in ("mean", "var"))
    yield f"{name}.bn.num_batches_tracked", ()


def published(channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the encoder in mobile_sam.pt, as its modeling/tiny_vit_sam.py makes
    them; written out from there, not from ours."""
    yield from _conv("patch_embed.seq.0", 32, 3, 3)
    yield from _conv("patch_embed.seq.2", 64, 32, 3)
    for block in range(2):
        name = f"layers.0.blocks.{block}"
        yield from _conv(f"{name}.conv1", 256, 64, 1)
        yield from _conv(f"{name}.conv2", 256, 256, 3, 256)
        yield from _conv(f"{name}.conv3", 64, 256, 1)
    dims = (64, 128, 160, 320)
    for layer in range(3):
        out = dims[layer + 1]
        name = f"layers.{layer}.downsample"
        yield from _conv(f"{name}.conv1", out, dims[layer], 1)
        yield from _conv(f"{name}.conv2", out, out, 3, out)
        yield from _conv(f"{name}.conv3", out, out, 1)
    for layer, depth, heads, window in ((1, 2, 4, 7), (2, 6, 5, 14), (3, 2, 10, 7)):
        dim = dims[layer]
        for block in range(depth):
            name = f"layers.{layer}.blocks.{block}"
            yield f"{name}.attn.attention_biases", (heads, window * window)
            for part in ("attn", "mlp"):
                yield from _norm(f"{name}.{part}.norm", dim)
            for linear, rows, columns in (
                ("attn.qkv", 3 * dim, dim),
                ("attn.proj", dim, dim),
                ("mlp.fc1", 4 * dim, dim),
                ("mlp.fc2", dim, 4 * dim),
            ):
                yield f"{name}.{linear}.weight", (rows, columns)
                yield f"{name}.{linear}.bias", (rows,)
            yield from _conv(f"{name}.local_conv", dim, dim, 3, dim)
    yield from _norm("norm_head", 320)
    yield "head.weight", (1000, 320)
    yield "head.bias", (1000,)
    yield "neck.0.weight", (channels, 320, 1, 1)
    yield from _norm("neck.1", channels)
    yield "neck.2.weight", (channels, channels, 3, 3)
    yield from _norm("neck.3", channels)


def published_state(config: SamConfig) -> dict[str, Tensor]:
    """A file of random weights with the published names; the rest of SAM's are SAM's."""
    rest = build_sam(config).state_dict()
    state = {n: v for n, v in rest.items() if not n.startswith("image_encoder.")}
    for name, shape in published(config.prompt_dim):
        value = torch.rand(shape) if shape else torch.tensor(3)
        state[f"image_encoder.{name}"] = value
    return state


def test_the_encoder_is_that_of_the_paper() -> None:
    """MobileSAM's: 1024 px give 64 x 64 of 256 channels, by about 6 million parameters."""
    with torch.device("meta"), torch.no_grad():
        encoder = TinyVitEncoder(1024, 256)
        assert encoder(torch.empty(1, 3, 1024, 1024)).shape == (1, 256, 64, 64)
    assert 5.5e6 < parameter_count(encoder) < 6.5e6
    assert PRESETS["mobile"].sam.tiny_vit


def test_every_published_tensor_has_its_place(tmp_path: Path) -> None:
    state = published_state(SMALL)
    torch.save(state, tmp_path / "mobile_sam.pt")
    preset = replace(PRESETS["mobile"], sam=SMALL)
    sam, _ = load_sam(preset, tmp_path / "mobile_sam.pt")
    encoder = sam.image_encoder
    blocks = encoder.stages[2].blocks
    places = {
        "patch_embed.seq.2.c.weight": encoder.patch_embed.conv2.conv.weight,
        "layers.0.blocks.1.conv3.bn.running_var": encoder.stages[0].blocks[1].conv3.bn.running_var,
        "layers.0.downsample.conv2.c.weight": encoder.stages[1].downsample.conv2.conv.weight,
        "layers.2.downsample.conv1.c.weight": encoder.stages[3].downsample.conv1.conv.weight,
        "layers.2.blocks.5.attn.attention_biases": blocks[5].attn.attention_biases,
        "layers.3.blocks.0.local_conv.bn.bias": encoder.stages[3].blocks[0].local_conv.bn.bias,
        "neck.2.weight": encoder.neck[2].weight,
    }
    for name, value in places.items():
        assert torch.equal(value, state[f"image_encoder.{name}"]), name


def test_another_sams_file_is_refused(tmp_path: Path) -> None:
    small = SamConfig(image_size=64, dim=16, depth=1, heads=2, global_blocks=(0,), window=2,
                      prompt_dim=32, mlp_dim=16)  # fmt: skip
    torch.save(build_sam(small).state_dict(), tmp_path / "sam.pth")
    preset = replace(PRESETS["mobile"], sam=SMALL)
    with pytest.raises(WeightsError, match=r"must be mobile_sam.pt, published at https://github"):
        load_sam(preset, tmp_path / "sam.pth")


def test_windows_and_biases_are_those_of_the_published_attention() -> None:
    """A block against its formula, written out: windows of 7 with padding, a bias by distance."""
    torch.manual_seed(0)
    block = TinyVitEncoder(128, 32).eval().stages[1].blocks[0]
    with torch.no_grad():
        block.attn.attention_biases.copy_(torch.randn(4, 49))
        x = torch.randn(1, 16, 16, 128)
        padded = F.pad(x, (0, 0, 0, 5, 0, 5))
        rows = torch.arange(7)
        away = (rows[:, None] - rows[None]).abs()
        # The bias of a distance (dy, dx) is at 7 dy + dx: distances are numbered as first seen.
        index = (7 * away[:, None, :, None] + away[None, :, None, :]).reshape(49, 49)
        whole = torch.empty_like(padded)
        for top in range(0, 21, 7):
            for left in range(0, 21, 7):
                window = padded[:, top : top + 7, left : left + 7].reshape(1, 49, 128)
                qkv = block.attn.qkv(block.attn.norm(window)).view(1, 49, 4, 96)
                q, k, v = (part.transpose(1, 2) for part in qkv.split(32, dim=3))
                scores = q @ k.mT / 32**0.5 + block.attn.attention_biases[:, index]
                found = block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
                whole[:, top : top + 7, left : left + 7] = found.view(1, 7, 7, 128)
        x1 = x + whole[:, :16, :16]
        x2 = block.local_conv(x1.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(block(x), x2 + block.mlp(x2), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # exports
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_its_graph_says_what_pytorch_says(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    sam = build_sam(SMALL)
    for attention in ATTENTIONS:
        assert with_attention(sam.image_encoder, attention) is sam.image_encoder
    graph = SamEncoderGraph(sam)
    module = graph if precision == "fp32" else HalfPrecision(graph, precision)
    example = {
        "image": torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8),
        "valid_size": torch.tensor([128, 64]),
    }
    path = tmp_path / "sam_encoder.onnx"
    export_graph(module, example, {}, ["embedding"], path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in example.items()})
    with torch.no_grad():
        wanted = graph(*example.values()).numpy()
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error < (1e-4 if precision == "fp32" else 3e-2)
