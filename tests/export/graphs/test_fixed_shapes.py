"""Graphs without shape arithmetic: where ONNX Runtime's rules would put them, and the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from clipsam.export.graphs import onnx_export
from clipsam.export.graphs.fixed_shapes import fix_shapes
from clipsam.export.graphs.onnx_export import export_graph
from clipsam.export.graphs.placement import has_kernel, on_cpu


class Batched(nn.Module):
    """Every way in which our graphs ask for the size of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, image: Tensor) -> Tensor:
        rows = image.flatten(2).transpose(1, 2)  # B,16,8
        token = self.token.expand(rows.shape[0], 1, -1)
        x = torch.cat([token, torch.nn.functional.normalize(rows, dim=-1)], dim=1)
        x = self.attention(x, x, x, need_weights=False)[0]
        grid = x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        larger: Tensor = nn.functional.interpolate(grid, size=(10, 12), mode="bilinear")
        return larger.flatten(0, 1)


def _export(path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool) -> onnx.ModelProto:
    torch.manual_seed(0)
    module = Batched()
    with monkeypatch.context() as patch:
        if not fixed:
            patch.setattr(onnx_export, "fix_shapes", lambda model: None)
        export_graph(module, {"image": torch.rand(2, 8, 4, 4)}, {"image": {0: "n"}}, ["y"], path)
    return onnx.load(path)


@pytest.mark.slow  # exports
def test_nothing_asks_for_a_shape_and_the_bits_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _export(tmp_path / "before.onnx", monkeypatch, fixed=False)
    after = _export(tmp_path / "after.onnx", monkeypatch, fixed=True)
    onnx.checker.check_model(after, full_check=True)
    assert "Shape" in {node.op_type for node in before.graph.node}
    assert not {"Shape", "Expand", "ConstantOfShape"} & {n.op_type for n in after.graph.node}
    assert len(on_cpu(before)) > 0
    assert on_cpu(after) == []
    names = ("before", "after")
    a, b = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in names)
    for batch in (1, 2, 5):
        feeds = {"image": np.random.default_rng(batch).normal(size=(batch, 8, 4, 4))}
        feeds["image"] = feeds["image"].astype(np.float32)
        found = b.run(None, feeds)[0]
        assert found.shape == (8 * batch, 10, 12)
        np.testing.assert_array_equal(found, a.run(None, feeds)[0])


def test_what_cannot_be_told_stays(tmp_path: Path) -> None:
    """Two free axes that are made one after the other, and an Expand that something else reads."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "m"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", "n", 3])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3, "m"])
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "turned"], ["sizes"]),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
        helper.make_node("Expand", ["one", "shape"], ["ones"]),
        helper.make_node("Max", ["ones", "x"], ["z"]),
    ]
    constants = {"turned": np.array([2, 0, 1]), "one": np.ones((1, 1, 1), np.float32)}
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y, z], weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    before = model.SerializeToString()
    fix_shapes(model)
    assert model.SerializeToString() == before


def _model(nodes: list[Any], opset: int, half: bool = False) -> onnx.ModelProto:
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    constants = [
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.zeros(101, np.int64), "large"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 4])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.UNDEFINED, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_placement_follows_what_lies_in_host_memory() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], "shape"),
        helper.make_node("Mul", ["s", "one"], ["t"], "small"),
        helper.make_node("Add", ["t", "large"], ["u"], "large"),
        helper.make_node("Reshape", ["x", "t"], ["y"], "reshape"),
    ]
    assert [found.node for found in on_cpu(_model(nodes, 20))] == ["small"]


@pytest.mark.parametrize(("half", "expected"), [(False, ["sin", "twice"]), (True, ["sin"])])
def test_an_operator_without_a_kernel_takes_its_readers_along(
    half: bool, expected: list[str]
) -> None:
    nodes = [
        helper.make_node("Sin", ["x"], ["s"], "sin"),
        helper.make_node("Add", ["s", "s"], ["t"], "twice"),
        helper.make_node("MatMul", ["t", "weights"], ["y"], "product"),
    ]
    model = _model(nodes, 22, half)
    kind = np.float16 if half else np.float32
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 30), kind), "weights"))
    assert [found.node for found in on_cpu(model)] == expected
    assert on_cpu(_model(nodes[:2], 20)) == []


@pytest.mark.parametrize(
    ("operator", "opset", "expected"),
    [("Sin", 20, True), ("Sin", 22, False), ("Equal", 18, True), ("Equal", 19, False),
     ("Cast", 20, True), ("Cast", 23, True), ("Cast", 24, False), ("Attention", 23, True),
     ("NonMaxSuppression", 20, False)],
)  # fmt: skip
def test_kernels_that_are_left_open_serve_one_version(
    operator: str, opset: int, expected: bool
) -> None:
    assert has_kernel(operator, opset) is expected
