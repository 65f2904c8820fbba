"""int8-dynamic: what the graph computes, which MatMuls stand it, and that outliers are met."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from support.small_encoder import encoder_cases, encoder_feeds, make_encoder

from clipsam.export.graphs.onnx_export import export_graph, tensor_specs
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.parity.inputs import varied_images
from clipsam.export.parity.onnx_vs_torch import (
    DisagreementError,
    GoldenCase,
    check_graph,
    golden_cases,
)
from clipsam.export.precisions.recipes import GraphRefusedError
from clipsam.export.quantization.activations import Activations
from clipsam.export.quantization.dynamic_int8 import (
    LAYER_ERRORS,
    DynamicInt8,
    DynamicQuantizer,
    read_record,
    smoothing,
)
from clipsam.export.quantization.dynamic_layer import WEIGHT_LEVELS
from clipsam.research.models.presets import Preset
from clipsam.runtime.backends.base import open_session

pytestmark = pytest.mark.slow  # exports

PRECISION = "int8-dynamic"
IMAGES = list(varied_images(3))
ROWS, IN, OUT = 100, 64, 48


@dataclass(frozen=True)
class Made:
    """The graph before and after, and what PyTorch says."""

    base: Path
    golden: list[GoldenCase]
    output: Path
    result: DynamicInt8


def _export(encoder: SamEncoderGraph, folder: Path) -> tuple[Path, list[GoldenCase]]:
    """The float32 graph, and what PyTorch says of the last image."""
    path = folder / "sam_encoder.onnx"
    cases = list(encoder_cases(IMAGES[2:]))
    export_graph(encoder, cases[0].feeds, {}, ["embedding"], path)
    return path, golden_cases("sam_encoder", encoder, cases)


@pytest.fixture(scope="module")
def base(
    small_preset: Preset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[GoldenCase]]:
    return _export(make_encoder(small_preset), tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def made(base: tuple[Path, list[GoldenCase]], tmp_path_factory: pytest.TempPathFactory) -> Made:
    output = tmp_path_factory.mktemp("int8") / "int8.onnx"
    path, golden = base
    return Made(
        path, golden, output, DynamicQuantizer(path, encoder_feeds(IMAGES[:2]), 1).write(output)
    )


def _naive(base: Path, output: Path) -> None:
    """What onnxruntime's own tool makes of the graph: every MatMul, with weights of 7 bits, too."""
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            base,
            output,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)


# --- the graph ----------------------------------------------------------------------------------


def test_the_graph_has_onnx_operators_and_int8_weights(made: Made) -> None:
    path, output, result = made.base, made.output, made.result
    assert len(result.int8) == 8  # qkv, proj and two of the MLP, in both blocks
    assert not result.left_out
    assert not result.smoothed
    assert result.share == 1
    assert read_record(output) == result
    assert tensor_specs(output) == tensor_specs(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing left behind

    model = onnx.load(output)
    assert {opset.domain for opset in model.opset_import} == {""}  # ONNX's own operators
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 8
    for node in products:
        weights = numpy_helper.to_array(constants[node.input[1]])
        assert weights.dtype == np.int8
        assert np.abs(weights.astype(int)).max() == WEIGHT_LEVELS
        # Two products with activations of 255 fit into the 16 bits that some CPUs add them in.
        assert 2 * 255 * WEIGHT_LEVELS < 2**15
        assert not numpy_helper.to_array(constants[node.input[3]]).any()  # symmetric
    read = {name for node in model.graph.node for name in node.input}
    assert set(constants) <= read  # the float32 weights are gone

    checks = check_graph("sam_encoder", output, made.golden, PRECISION, 1)
    assert 1e-3 < max(check.max_rel for check in checks) < 0.1  # int8, and not off by far


def test_onnxruntime_fuses_every_int8_product(made: Made, tmp_path: Path) -> None:
    """Unfused, int8 is slower than float32."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(made.output, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert operators["DynamicQuantizeMatMul"] + operators["MatMulIntegerToFloat"] == 8
    assert operators["MatMulInteger"] == 0


def test_it_computes_what_onnxruntime_s_own_tool_does(made: Made, tmp_path: Path) -> None:
    _naive(made.base, tmp_path / "theirs.onnx")
    found = []
    for path in (made.output, tmp_path / "theirs.onnx"):
        with open_session(path, "cpu", 1) as session:
            found.append(session.run(made.golden[0].feeds)["embedding"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4 * np.abs(found[1]).max())


# --- which MatMuls ------------------------------------------------------------------------------


def _products(folder: Path, **weights: NDArray[np.float32]) -> Path:
    """x float32 [1,100,64] -> x @ weights for every keyword, a Gemm where its name says so."""
    nodes, constants = [], []
    for name, values in weights.items():
        constants.append(numpy_helper.from_array(values, f"{name}_w"))
        if name.startswith("gemm"):
            bias = np.arange(values.shape[0], dtype=np.float32)
            constants.append(numpy_helper.from_array(bias, f"{name}_b"))
            constants.append(numpy_helper.from_array(np.array([-1, IN]), f"{name}_shape"))
            nodes.append(helper.make_node("Reshape", ["x", f"{name}_shape"], [f"{name}_x"]))
            inputs = [f"{name}_x", f"{name}_w", f"{name}_b"]
            nodes.append(helper.make_node("Gemm", inputs, [name], name, transB=1))
        else:
            nodes.append(helper.make_node("MatMul", ["x", f"{name}_w"], [name], name))
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["?"] * 2) for n in weights]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, ROWS, IN])
    graph = helper.make_graph(nodes, "products", [x], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "products.onnx")
    return folder / "products.onnx"


def _run(path: Path, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    with open_session(path, "cpu", 1) as session:
        return session.run({"x": x})


def _normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _measured(exact: NDArray[Any], found: NDArray[Any]) -> float:
    """Of the typical token; what tokens share is no signal."""
    exact, found = (y.reshape(-1, y.shape[-1]) for y in (exact, found))
    errors = np.linalg.norm(found - exact, axis=1)
    signals = np.linalg.norm(exact - np.median(exact, axis=0), axis=1)
    return float(np.median(errors) / np.median(signals))


@pytest.mark.parametrize("kind", ["as it is", "smoothed"])
def test_the_error_foretold_is_the_error_made(kind: str, tmp_path: Path) -> None:
    x = _normal(1, ROWS, IN) + 1
    weights = {"matmul": _normal(IN, OUT, seed=1), "gemm": _normal(OUT, IN, seed=2)}
    if kind == "smoothed":
        x[..., 0] *= 100
        weights["matmul"][0] /= 100
        weights["gemm"][:, 0] /= 100
    path = _products(tmp_path, **weights)
    result = DynamicQuantizer(path, [{"x": x}], 1).write(tmp_path / "int8.onnx")
    foretold = result.int8 if kind == "as it is" else result.smoothed
    exact, found = _run(path, x), _run(tmp_path / "int8.onnx", x)
    assert set(foretold) == {"matmul", "gemm"}
    for name, error in foretold.items():
        assert 0.005 < error < LAYER_ERRORS[0]
        assert _measured(exact[name], found[name]) == pytest.approx(error, rel=0.02)


def test_tokens_that_are_too_large_leave_a_matmul_out(tmp_path: Path) -> None:
    """One scale serves all tokens, and dividing channels does not help."""
    x = _normal(1, ROWS, IN)
    path = _products(tmp_path, good=_normal(IN, OUT, seed=1))
    plain = DynamicQuantizer(path, [{"x": x}], 1).write(tmp_path / "int8.onnx")
    x[0, 3] *= 2000
    quantizer = DynamicQuantizer(path, [{"x": x}], 1)
    (tmp_path / "int8.onnx").unlink()
    with pytest.raises(GraphRefusedError, match="only 0% of the products of products stand int8"):
        quantizer.write(tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()
    assert plain.int8["good"] < LAYER_ERRORS[0]


def test_what_is_left_out_is_float32_to_the_bit(tmp_path: Path) -> None:
    x, weights = _normal(1, ROWS, IN) + 40, _normal(IN, OUT, seed=1)
    # What all tokens share is no signal, and drowns it, unless the weights take it out.
    centred = weights - weights.mean(axis=0)
    path = _products(tmp_path, kept=weights, fine=np.eye(IN, dtype=np.float32)[:, :OUT] + centred)
    quantizer = DynamicQuantizer(path, [{"x": x}], 1)
    errors = {**(r := quantizer.write(tmp_path / "all.onnx", np.inf)).int8, **r.smoothed}
    worse, better = sorted(errors, key=errors.__getitem__, reverse=True)
    result = quantizer.write(tmp_path / "one.onnx", (errors[worse] + errors[better]) / 2)
    assert set(result.left_out) == {worse}
    assert result.share == 0.5
    exact, found = _run(path, x), _run(tmp_path / "one.onnx", x)
    assert np.array_equal(exact[worse], found[worse])
    assert not np.array_equal(exact[better], found[better])


def test_few_rows_and_few_channels_stay_float32(tmp_path: Path) -> None:
    path = _products(tmp_path, large=_normal(IN, OUT), narrow=_normal(IN, 8))
    result = DynamicQuantizer(path, [{"x": _normal(1, ROWS, IN)}], 1).write(tmp_path / "i.onnx")
    assert set(result.int8) == {"large"}
    assert result.share == 1  # of those that could be

    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 20
    onnx.save(model, path)
    with pytest.raises(GraphRefusedError, match="only 0%"):
        DynamicQuantizer(path, [{"x": _normal(1, 20, IN)}], 1).write(tmp_path / "i.onnx")


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = _normal(1, ROWS, IN)
    path = _products(tmp_path, large=_normal(IN, OUT), other=_normal(IN, OUT, seed=1))
    quantizer = DynamicQuantizer(path, [{"x": x}], 1)
    quantizer.write(tmp_path / "inline.onnx")
    monkeypatch.setattr("clipsam.export.quantization.dynamic_int8.INLINE_BYTES", 1000)
    quantizer.write(tmp_path / "int8.onnx")
    beside = tmp_path / "int8.onnx.data"
    size = beside.stat().st_size
    assert IN * OUT * 2 <= size < IN * OUT * 4  # as int8
    quantizer.write(tmp_path / "int8.onnx")
    assert beside.stat().st_size == size  # written anew, not added to
    found, expected = (_run(tmp_path / f"{name}.onnx", x) for name in ("int8", "inline"))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)

    # From such a graph, as large ones in float32 are.
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=0
    )
    DynamicQuantizer(path, [{"x": x}], 1).write(tmp_path / "again.onnx")
    again = _run(tmp_path / "again.onnx", x)
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_stricter_limits_are_those_that_change_something(tmp_path: Path) -> None:
    path = _products(tmp_path, good=_normal(IN, OUT))
    quantizer = DynamicQuantizer(path, [{"x": _normal(1, ROWS, IN)}], 1)
    assert list(quantizer.limits()) == [LAYER_ERRORS[0]]


def test_smoothing_leaves_alike_ranges() -> None:
    rows = _normal(200, IN)
    rows[:, 5] *= 300
    rows[:, 7] = 0  # silent on these images
    seen = Activations()
    seen.add(rows)
    weights = _normal(IN, OUT, seed=1)
    by = smoothing(seen, weights)
    assert np.exp(np.log(by).mean()) == pytest.approx(1, rel=1e-4)
    assert by[5] == pytest.approx(np.median(by) * 300**0.5, rel=0.3)
    assert by[7] > 0.05 * np.median(by)  # and no trap when it speaks


# --- outlier channels ---------------------------------------------------------------------------


def test_outlier_channels_are_smoothed_or_left_out(small_preset: Preset, tmp_path: Path) -> None:
    """Random weights flatter int8; trained transformers have channels like these."""
    path, golden = _export(make_encoder(small_preset, outliers=500.0), tmp_path)
    _naive(path, tmp_path / "naive.onnx")
    with pytest.raises(DisagreementError, match="in int8-dynamic does not agree with PyTorch"):
        check_graph("sam_encoder", tmp_path / "naive.onnx", golden, PRECISION, 1)

    result = DynamicQuantizer(path, encoder_feeds(IMAGES[:2]), 1).write(tmp_path / "int8.onnx")
    assert len(result.int8) == 7
    ((name, error),) = result.smoothed.items()
    assert error < LAYER_ERRORS[-1]
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    assert "layer_norm" in nodes[name].input[0]
    checks = check_graph("sam_encoder", tmp_path / "int8.onnx", golden, PRECISION, 1)
    assert max(check.max_rel for check in checks) < 0.1
