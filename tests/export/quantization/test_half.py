"""Half precision: what becomes half, what stays float32, and that the check sees overflows."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from support.small_graphs import NOISE, small_sources
from torch import Tensor, nn

from clipsam.export.bundle.variants import build_variant, complete
from clipsam.export.graphs.onnx_export import export_graph, tensor_specs
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.parity.half_emulation import emulate
from clipsam.export.parity.inspection import overlap, pixels_of_a_logit
from clipsam.export.parity.onnx_vs_torch import check_graph, golden_cases
from clipsam.export.parity.tensors import compare
from clipsam.export.precisions.recipes import RECIPES, TOLERANCES
from clipsam.export.quantization import floating
from clipsam.export.quantization.half import _PRODUCTS, DTYPES, IN_FLOAT32, HalfPrecision
from clipsam.research.models.presets import Preset
from clipsam.runtime.backends.precision import PRECISIONS, safer_than
from clipsam.runtime.backends.providers import PROVIDERS, can_run, preferred_by
from clipsam.runtime.bundle import GRAPHS
from clipsam.runtime.core.errors import ExportError

pytestmark = pytest.mark.slow  # exports

HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Operators that must not see half: they square, sum many values or exponentiate.
FLOAT32_ONLY = {
    "LayerNormalization", "InstanceNormalization", "Softmax", "ReduceMean", "ReduceL2", "Pow",
    "Sqrt", "Sin", "Cos", "Exp",
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """A graph in a precision and at an opset."""

    source: GraphSource
    precision: str
    path: Path


class _Bar:
    """A progress bar that shows nothing."""

    def update(self, n: int = 1) -> None:
        pass


@pytest.fixture(scope="module")
def sources(small_preset: Preset) -> dict[str, GraphSource]:
    # One input says as much as five here; the build runs them all.
    return {
        name: replace(source, cases=source.cases[-1:])
        for name, source in small_sources(small_preset, "mask").items()
    }


@pytest.fixture(scope="module")
def export(
    sources: dict[str, GraphSource],
    small_graph: Callable[[str, str, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Exported]:
    """A graph in half precision: SAM's encoder with another attention than bundles have, at bf16's
    opset; the others as a bundle has them."""

    @cache
    def get(name: str, precision: str) -> Exported:
        source, path = sources[name], tmp_path_factory.mktemp("graphs") / f"{name}.{precision}.onnx"
        opset = RECIPES["bf16"].opset
        if name == "sam_encoder":
            next(floating.make(source, precision, path, opset, 1))
        else:
            opset = max(20, RECIPES[precision].opset)
            shutil.copy(small_graph(name, precision, opset), path)
        return Exported(source, precision, path)

    return get


@pytest.fixture(scope="module", params=list(itertools.product(GRAPHS, DTYPES)), ids="-".join)
def exported(request: pytest.FixtureRequest, export: Callable[[str, str], Exported]) -> Exported:
    return export(*request.param)


# --- the module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("precision", DTYPES)
def test_tensors_named_alone_stay_float32(
    name: str, precision: str, sources: dict[str, GraphSource]
) -> None:
    graph: Any = sources[name].module
    before = {n: t.clone() for n, t in _tensors(graph)}
    half = HalfPrecision(graph, precision).module

    kept: Counter[str] = Counter()
    norms = [n for n, m in graph.named_modules() if isinstance(m, IN_FLOAT32)]
    found = {n.replace(".module.", "."): t for n, t in _tensors(half)}
    assert set(found) == set(before)
    for key, tensor in found.items():
        if not tensor.is_floating_point():
            continue
        reasons = [p for p in graph.keep_float32 if fnmatch(key, p) or fnmatch(key, f"{p}.*")]
        reasons += [n for n in norms if key.startswith(f"{n}.")]
        kept.update(reasons)
        wanted = torch.float32 if reasons else DTYPES[precision]
        assert tensor.dtype == wanted, key
        assert torch.equal(tensor, before[key].to(wanted))
    assert set(kept) == {*graph.keep_float32, *norms}  # no pattern that names nothing
    assert any(t.dtype == DTYPES[precision] for t in found.values())
    # The original is what the other precisions are made from.
    assert all(torch.equal(t, before[n]) for n, t in _tensors(graph))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from itertools.chain(module.named_parameters(), module.named_buffers())


def test_precisions_are_one_list() -> None:
    assert set(TOLERANCES) == set(PRECISIONS)
    assert tuple(RECIPES) == tuple(PRECISIONS)
    for name, precision in PRECISIONS.items():
        assert name == "fp32" or safer_than(name)[-1] == "fp32"
        assert set(precision.made_for) <= set(PROVIDERS)
        assert any(can_run(provider, name) for provider in PROVIDERS)
    for provider, entry in PROVIDERS.items():
        assert preferred_by(provider)[0] == entry.prefers
    assert complete(()) == ("fp32",)
    assert complete(("bf16", "tf32")) == ("fp32", "bf16")
    assert safer_than("fp16") == ("bf16", "tf32", "fp32")
    assert complete(("int8",)) == ("fp32", "fp16", "int8")  # brings its decoder along
    limits = [TOLERANCES[p] for p in ("fp32", "fp16", "bf16", "int8")]
    for safe, fast in itertools.pairwise(limits):
        assert safe.max_rel < fast.max_rel
        assert safe.mask_iou > fast.mask_iou


@pytest.mark.parametrize(("equation", "side"), [("bhwc,hkc->bhwk", 4), ("bhwc,wkc->bhwk", 5)])
def test_relative_positions_are_the_same_as_products(equation: str, side: int) -> None:
    x, table = torch.randn(2, 4, 5, 8), torch.randn(side, 7, 8)
    expected = torch.einsum(equation, x, table)
    torch.testing.assert_close(_PRODUCTS[equation](x, table), expected)


# --- the graph ----------------------------------------------------------------------------------


def test_tensors_of_the_graph_are_those_of_float32(exported: Exported, small_bundle: Path) -> None:
    assert tensor_specs(exported.path) == tensor_specs(
        small_bundle / f"{exported.source.name}.onnx"
    )


def test_half_where_it_pays_and_float32_where_it_matters(exported: Exported) -> None:
    half = HALF_TYPES[exported.precision]
    model = onnx.load(exported.path)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {t.name: t.data_type for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in inferred.node:
        if node.op_type in FLOAT32_ONLY:
            assert types[node.input[0]] != half, node.name
        if node.op_type in {"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"}:
            assert {types[name] for name in node.input if name} in ({half}, {TensorProto.FLOAT})
    assert not any(t.data_type == TensorProto.DOUBLE for t in model.graph.initializer)
    weights = Counter[int]()
    for tensor in model.graph.initializer:
        weights[tensor.data_type] += int(np.prod(tensor.dims))
    assert weights[half] > weights[TensorProto.FLOAT]


def test_numbers_are_within_tolerance(exported: Exported) -> None:
    source = exported.source
    checks = check_graph(source.name, exported.path, source.golden, exported.precision, 1)
    assert {check.output for check in checks} == set(GRAPHS[source.name][1])
    assert all(check.passed and check.precision == exported.precision for check in checks)
    # It is half precision that was run, not float32 by another name.
    assert max(check.max_rel for check in checks) > 10 * TOLERANCES["fp32"].max_rel
    assert [p.name for p in exported.path.parent.iterdir()] == [exported.path.name]


# CLIP's tokens leave their graph as fp16 in every precision.
@pytest.mark.parametrize("name", ["sam_encoder", "sam_decoder"])
def test_bf16_is_fp16_with_another_type(name: str, export: Callable[[str, str], Exported]) -> None:
    """onnxruntime does not run bf16; its graph is the one that was run in fp16, node by node."""
    nodes = {}
    for precision, half in HALF_TYPES.items():
        graph = onnx.load(export(name, precision).path).graph
        nodes[precision] = [str(n).replace(f"i: {half}\n", "i: HALF\n") for n in graph.node]
    assert nodes["bf16"] == nodes["fp16"]


@pytest.fixture(scope="module")
def of_opset_23(sources: dict[str, GraphSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAM's encoder in float32."""
    source, path = sources["sam_encoder"], tmp_path_factory.mktemp("23") / "sam_encoder.onnx"
    export_graph(source.module, source.example, source.axes, ["embedding"], path, 23)
    return path


@pytest.mark.parametrize("precision", DTYPES)
def test_opset_23_keeps_attention_whole(
    precision: str, sources: dict[str, GraphSource], of_opset_23: Path, tmp_path: Path
) -> None:
    source = sources["sam_encoder"]
    shutil.copy(of_opset_23, tmp_path)
    checks = build_variant(source, precision, tmp_path, 23, 1, _Bar())
    assert all(check.passed for check in checks)
    graph = onnx.load(tmp_path / f"sam_encoder.{precision}.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["Attention"] == 2
    assert operators["Softmax"] == 0


# --- emulation ----------------------------------------------------------------------------------


def _overflowing(half: int) -> onnx.ModelProto:
    """float32 x -> half -> x * x -> square root -> float32: |x|, where the square fits."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["h"], to=half),
            helper.make_node("Mul", ["h", "h"], ["square"]),
            helper.make_node("Sqrt", ["square"], ["root"]),
            helper.make_node("Cast", ["root"], ["y"], to=TensorProto.FLOAT),
        ],
        "overflow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("precision", HALF_TYPES)
def test_emulation_rounds_where_half_would(precision: str, tmp_path: Path) -> None:
    onnx.save(_overflowing(HALF_TYPES[precision]), tmp_path / "graph.onnx")
    emulate(tmp_path / "graph.onnx", tmp_path / "emulated.onnx")
    x = np.array([1.2345678, 100, 1000], np.float32)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):  # no optimisation may undo it
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(
            tmp_path / "emulated.onnx", options, providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {"x": x})
        half = torch.from_numpy(x).to(DTYPES[precision])
        assert np.array_equal(found, (half * half).sqrt().float().numpy())
        assert np.isinf(found[2]) == (precision == "fp16")  # 1000 squared


def test_emulation_returns_as_half_what_the_graph_does(tmp_path: Path) -> None:
    model = _overflowing(TensorProto.FLOAT)
    model.graph.node[-1].attribute[0].i = TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "graph.onnx")
    emulate(tmp_path / "graph.onnx", tmp_path / "emulated.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "emulated.onnx", providers=["CPUExecutionProvider"]
    )
    x = np.array([1.2345678, 100, 1000], np.float32)
    (found,) = session.run(None, {"x": x})
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x.astype(np.float16))


def test_emulation_is_what_pytorch_computes_in_half(
    export: Callable[[str, str], Exported],
) -> None:
    """Up to a few roundings: kernels sum in other orders."""
    exported = export("sam_decoder", "fp16")
    source, module = exported.source, HalfPrecision(exported.source.module, "fp16")
    golden = golden_cases(source.name, module, source.cases)
    checks = check_graph(source.name, exported.path, golden, "fp16", 1)
    assert max(check.max_rel for check in checks) < 5e-3


def test_directions_are_compared_by_the_distance_between_them() -> None:
    """Rounding to half is nothing to it; another length, or one direction of many, is."""
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(2, 300, 16)).astype(np.float32)
    exact /= np.linalg.norm(exact, axis=2, keepdims=True)
    half = exact.astype(np.float16)
    wrong = half.copy()
    wrong[1, 7] = wrong[1, 8]
    assert compare("", "", "tokens", exact, half, "fp32").passed
    assert not compare("", "", "other", exact, half, "fp32").passed
    assert not compare("", "", "tokens", half, half * np.float16(0.98), "fp32").passed
    check = compare("", "", "tokens", half, wrong, "fp16")
    assert check.max_rel == pytest.approx(1 - float(exact[1, 7] @ exact[1, 8]), abs=1e-3)
    assert not check.passed
    nan = half * np.float16(np.nan)
    assert not compare("", "", "tokens", half, nan, "bf16").passed


def test_a_graph_that_breaks_the_rules_of_types_is_refused(
    sources: dict[str, GraphSource], tmp_path: Path
) -> None:
    """The exporter writes convolutions of bf16 at opset 20, where ONNX has none."""
    source, path = sources["sam_encoder"], tmp_path / "sam_encoder.bf16.onnx"
    module = HalfPrecision(source.module, "bf16")
    export_graph(module, source.example, source.axes, ["embedding"], path, 20)
    with pytest.raises(ExportError, match=r"breaks ONNX's rules \(.*bfloat16.*use another --opset"):
        check_graph(source.name, path, source.golden, "bf16", 1)


def test_emulation_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    model = _overflowing(TensorProto.FLOAT16)
    model.graph.node[1].domain = "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(ExportError, match="The type of the tensor square cannot be told"):
        emulate(tmp_path / "graph.onnx", tmp_path / "emulated.onnx")


# --- the best known failure ---------------------------------------------------------------------


def test_fp16_normalisation_that_overflows_is_caught(
    small_preset: Preset, sources: dict[str, GraphSource], tmp_path: Path
) -> None:
    """SAM encoders in fp16 that are silently wrong: no error, no NaN, and nothing in the output.

    Large values before the neck's LayerNorm2d, which takes their scale out again: float32 says the
    same as without, and fp16 does if the normalisation is float32. In half the squares of the
    deviations are infinite, and the quotient by their root is zero everywhere. onnxruntime's CPU
    provider leaves the rounding out, and would have passed the graph.
    """
    sam = NOISE.load_sam(small_preset)[0]
    for convolution in (sam.image_encoder.neck[0], sam.image_encoder.neck[2]):
        convolution.weight.data *= 3000
    source = replace(sources["sam_encoder"], module=SamEncoderGraph(sam))
    plain = sources["sam_encoder"].golden[0].outputs["embedding"]
    assert compare("sam_encoder", "", "", plain, source.golden[0].outputs["embedding"]).passed

    def check(in_float32: tuple[type[nn.Module], ...], precision: str) -> None:
        path = tmp_path / f"sam_encoder.{precision}.onnx"
        module = HalfPrecision(source.module, precision, in_float32=in_float32)
        opset = RECIPES["bf16"].opset
        export_graph(module, source.example, source.axes, ["embedding"], path, opset)
        check_graph("sam_encoder", path, source.golden, precision, 1)

    check(IN_FLOAT32, "fp16")
    check((), "bf16")  # has float32's range
    with pytest.raises(
        ExportError,
        match=r"sam_encoder in fp16 does not agree .* off by .* of its largest value \(3e-02 is "
        r"allowed\); no bundle was written. Leave out --precision fp16, and use fp32 \(or bf16",
    ):
        check((), "fp16")


# --- masks --------------------------------------------------------------------------------------


def test_edges_of_small_masks_do_not_count() -> None:
    speck, part = np.zeros((2, 100, 100), np.bool_)
    speck[10:12, 10:13] = True  # 6 pixels
    part[10:80, 10:80] = True
    for mask in (speck, part):
        assert overlap(mask, mask) == overlap(np.zeros_like(mask), np.zeros_like(mask)) == 1
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        plain = (grown & mask).sum() / (grown | mask).sum()
        assert overlap(grown, mask, exact=True) == pytest.approx(plain)
        assert overlap(grown, mask) == pytest.approx(1 if mask is speck else plain)
    elsewhere = np.roll(speck, 40)
    assert overlap(elsewhere, speck) <= 0.5  # wrong all the same
    beside = speck | np.roll(speck, 20)
    assert overlap(beside, speck) == pytest.approx(0.5)


def test_a_missing_line_is_missing() -> None:
    """All of a thin line is edge; it has to be there nevertheless."""
    line = np.zeros((200, 200), np.bool_)
    line[99:101, 20:180] = True
    assert overlap(np.zeros_like(line), line) == 0
    assert overlap(np.roll(line, 1, axis=0), line) == 1
    assert overlap(np.roll(line, 5, axis=0), line) == 0


def test_one_logit_covers_as_many_pixels_as_counted() -> None:
    """SAM's logits cover the longest side: 128 of them 512 pixels are 4 x 4 each."""
    assert pixels_of_a_logit((90, 512), 128) == pixels_of_a_logit((512, 90), 128) == 16
