"""int8 scales are half in a half graph: layers of small numbers must not become zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clipsam.export.parity.half_emulation import emulate
from clipsam.export.quantization.activations import LARGEST_HALF, LEAST_STEP, LEVELS, Activations
from clipsam.export.quantization.static_int8 import _insert, layer_error
from clipsam.runtime.backends.base import open_session

WIDTH, ROWS = 48, 64


def _matmul(weights: NDArray[np.float16]) -> onnx.ModelProto:
    """float32 x -> half -> x @ weights -> float32."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["half"], "in", to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["half", "weights"], ["product"], "matmul"),
            helper.make_node("Cast", ["product"], ["y"], "out", to=TensorProto.FLOAT),
        ],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, WIDTH])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("size", [1.0, 2e-2, 2e-3, 3e-4, 3e-5])
@pytest.mark.parametrize("activations", [1.0, 1e-3])
def test_a_layer_is_as_wrong_as_it_was_said_to_be(
    size: float, activations: float, tmp_path: Path
) -> None:
    """The error by which a layer was chosen is that of the graph that is written, also where a
    scale would be too small for half and the quantizer would have put 1.0 in its place."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(WIDTH, WIDTH)) * size
    weights[:, 0] = np.abs(weights[:, 0])  # of one sign
    half = weights.astype(np.float16)
    x = (rng.normal(size=(ROWS, WIDTH)) * activations).astype(np.float32)
    seen = Activations()
    seen.add(x.astype(np.float16).astype(np.float32))
    said = layer_error(seen, half.astype(np.float32))

    model = _insert(_matmul(half), ["matmul"], {"half": seen.limit()})
    onnx.save(model, tmp_path / "int8.onnx")
    scales = [numpy_helper.to_array(t) for t in model.graph.initializer if "scale" in t.name]
    assert len(scales) == 2
    assert all((scale >= LEAST_STEP).all() and (scale < 0.1).all() for scale in scales)
    emulate(tmp_path / "int8.onnx", tmp_path / "emulated.onnx")
    with open_session(tmp_path / "emulated.onnx", "cpu", 1) as session:
        found = session.run({"x": x})["y"]
    exact = x.astype(np.float16).astype(np.float64) @ half.astype(np.float64)
    signal = exact - exact.mean(axis=0)
    error = float(np.sqrt(np.square(found - exact).mean() / np.square(signal).mean()))
    assert error == pytest.approx(said, rel=0.1, abs=2e-3)
    if size * activations >= 2e-3:
        assert error < 0.1


def test_limits_are_within_half() -> None:
    for value, limit in ((1e-6, LEVELS * LEAST_STEP), (65500.0, LARGEST_HALF)):
        seen = Activations()
        seen.add(np.full((4, 4), value, np.float32))
        assert seen.limit() == limit
        assert np.isfinite(np.float16(seen.limit()))
