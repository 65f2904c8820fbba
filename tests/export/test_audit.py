"""`clipsam audit` on files that are fine, and on such that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.toy_bundle import build_toy_bundle, write_graph

from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.cli import main


def test_a_bundle_is_audited_graph_by_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(build_toy_bundle(tmp_path / "toy"))]) == 1  # it uses Min and Max
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "clip_umci.onnx: opset 20, 15 nodes",
        "sam_encoder.onnx: opset 20, 4 nodes",
        "sam_decoder.onnx: opset 20, 23 nodes",
    ]
    assert "tensorrt: documented, all of it" in out
    assert "operator Max" in out
    assert out.count("cuda: all of it") == 3


@pytest.mark.parametrize(
    ("operator", "code", "said"),
    [
        ("Softmax", 0, "cuda: all of it"),
        ("Equal", 0, "cuda: 2 nodes on the CPU (Cast 1, Equal 1)"),
        ("NonZero", 1, "operator NonZero"),
    ],
)
def test_a_file_of_its_own(
    operator: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes: list[Any] = [(operator, ["x", "x"] if operator == "Equal" else ["x"], "found", {})]
    nodes.append(("Cast", ["found"], "y", {"to": TensorProto.FLOAT}))
    shape = (2, "k") if operator == "NonZero" else ("n", 2)
    write_graph(
        tmp_path / "one.onnx",
        (TensorSpec("x", "float32", ("n", 2)),),
        (TensorSpec("y", "float32", shape),),
        nodes,
        {},
    )
    assert main(["audit", str(tmp_path / "one.onnx")]) == code
    assert said in capsys.readouterr().out


def test_an_operator_that_onnx_does_not_have_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Bogus", ["x"], ["y"])], "g", [x], [y])
    opset = helper.make_opsetid("ai.onnx", 20)  # the other name of the empty domain
    onnx.save(helper.make_model(graph, opset_imports=[opset]), tmp_path / "one.onnx")
    assert main(["audit", str(tmp_path / "one.onnx")]) == 1
    out = capsys.readouterr().out
    assert "operator Bogus" in out
    assert "cuda: 1 nodes on the CPU (Bogus 1)" in out


def test_what_is_no_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("not a graph")
    (tmp_path / "empty.onnx").touch()
    for name in ("text.onnx", "empty.onnx", "missing.onnx"):
        assert main(["audit", str(tmp_path / name)]) == 1
        assert f"{name} is not an ONNX graph" in capsys.readouterr().err
    assert main(["audit", str(tmp_path)]) == 1
    assert "There is no bundle in" in capsys.readouterr().err
