"""The first diverging layer is found, with its range, wherever the divergence was planted.

Both sides are ONNX Runtime here: what TensorRT does is not shown by any test of this file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.cli_run import listing
from support.golden_toy import break_normalisation, build_golden_toy, rehash

pytest.importorskip("polygraphy")

from clipsam.export.parity.golden import read_golden
from clipsam.export.parity.half_emulation import emulate
from clipsam.export.trt import diagnose as command
from clipsam.export.trt.diagnose import describe, diagnose, main
from clipsam.export.trt.gate import GateError, check_session
from clipsam.export.trt.layers import Range, first_diverging, marked, on_cpu
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.backends.trt.sidecar import Profile


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder: Path = build_golden_toy(tmp_path / "bundle", "fp16")
    return folder


@pytest.fixture
def broken(bundle: Path) -> Path:
    """With an fp16 encoder that squares thousands, and so overflows in the node `square`."""
    break_normalisation(bundle / "sam_encoder.fp16.onnx")
    rehash(bundle)
    return bundle


@pytest.mark.parametrize("at_once", [100, 5, 2])
def test_an_overflow_is_found_with_the_range_of_its_layer(broken: Path, at_once: int) -> None:
    before = listing(broken)
    _, finding = diagnose(broken, "sam_encoder", "fp16", "cpu", at_once=at_once)
    assert finding.first is not None
    assert (finding.first.tensor, finding.first.operator) == ("square", "Mul")
    assert finding.first.expected.high == pytest.approx(finding.first.inputs["x16"].high ** 2)
    assert finding.first.expected.largest > 65504
    assert finding.first.found.not_finite > 0
    assert "x16" in finding.before
    assert (finding.passes == 1) == (at_once == 100)
    assert listing(broken) == before


def test_the_command_says_what_to_do_and_writes_the_finding(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "finding.json"
    arguments = [str(broken), "sam_encoder", "--precision", "fp16", "--provider", "cpu"]
    assert main([*arguments, "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "first diverging layer  square (Mul)" in said
    assert "fp16 ends at 65504" in said
    assert "small models with random weights" in said
    assert "Provisional" in said
    assert json.loads(file.read_text())["first"]["tensor"] == "square"


def test_a_layer_that_another_engine_gets_wrong_is_found_by_the_same_names(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In TensorRT's place a second ONNX Runtime, whose third layer is one per cent too large."""
    path = bundle / "sam_encoder.onnx"
    layers = marked(path)
    node, tensor = layers[2]

    def runner(file: Path) -> object:
        model = onnx.load(file)
        wrong = next(n for n in model.graph.node if tensor in n.output)
        wrong.output[list(wrong.output).index(tensor)] = "right"
        factor = onnx.numpy_helper.from_array(np.float32(1.01).reshape(()), "factor")
        model.graph.initializer.append(factor)
        at = list(model.graph.node).index(wrong) + 1
        model.graph.node.insert(at, onnx.helper.make_node("Mul", ["right", "factor"], [tensor]))
        altered = file.with_name("altered.onnx")
        onnx.save(model, altered)
        return on_cpu(altered)

    monkeypatch.setattr(command, "_on_tensorrt", lambda profiles, tf32: runner)
    assert main([str(bundle), "sam_encoder", "--precision", "fp32"]) == 0
    said = capsys.readouterr().out
    assert f"{node.name or tensor} ({node.op_type}), its output {tensor} is off by 1.0e-02" in said
    assert "Provisional" not in said


def test_where_nothing_is_off_it_says_what_that_means(bundle: Path) -> None:
    case, finding = diagnose(bundle, "clip_umci", "fp16", "cpu")
    assert finding.first is None
    asked = finding, "clip_umci", "fp16", case.name
    assert "the precision is not at fault" in describe(*asked, "cpu")
    assert "a fused kernel is at fault" in describe(*asked, "tensorrt")


def test_weights_beside_the_graph_are_found(broken: Path, tmp_path: Path) -> None:
    path = broken / "sam_encoder.fp16.onnx"
    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0
    )
    rehash(broken)
    _, finding = diagnose(broken, "sam_encoder", "fp16", "cpu")
    assert finding.first is not None
    assert finding.first.tensor == "square"


def test_infinities_that_both_sides_have_are_equal(bundle: Path, tmp_path: Path) -> None:
    """As those of an attention's mask."""
    inf = onnx.numpy_helper.from_array(np.full(3, -np.inf, np.float32), "mask")
    info = onnx.helper.make_tensor_value_info
    nodes = [("Add", ["x", "mask"], "masked"), ("Softmax", ["x"], "y")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, given, [out]) for op, given, out in nodes],
        "g", [info("x", 1, [1, 3])], [info("masked", 1, [1, 3]), info("y", 1, [1, 3])], [inf],
    )  # fmt: skip
    path = tmp_path / "masked.onnx"
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9
        ),
        path,
    )
    side = (path, on_cpu)
    feeds = {"x": np.ones((1, 3), np.float32)}
    assert first_diverging(path, side, side, feeds, ("g", "c", "fp32")).first is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sam_encoder", "--precision", "fp16"], "needs TensorRT"),
        (["sam_encoder", "--precision", "bf16"], "has no graph sam_encoder in bf16"),
        (["sam_encoder", "--precision", "fp32", "--provider", "cpu"], "use --provider tensorrt"),
        (
            ["sam_encoder", "--precision", "fp16", "--provider", "cpu", "--case", "x"],
            "recorded no 'x' of sam_encoder: use one of 'noise', ",
        ),
    ],
)
def test_what_cannot_be_diagnosed_is_one_sentence(
    bundle: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    assert main([str(bundle), *arguments]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert words in said


def test_a_graph_that_does_not_run_is_one_sentence(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def runner(file: Path) -> object:
        file.write_bytes(b"no graph")
        return on_cpu(file)

    monkeypatch.setattr(command, "_on_tensorrt", lambda profiles, tf32: runner)
    assert main([str(bundle), "sam_encoder", "--precision", "fp32"]) == 1
    assert "does not run with its layers marked" in capsys.readouterr().err


def test_polygraphy_takes_what_tensorrt_is_asked(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By names and arguments; nothing is built without TensorRT."""
    monkeypatch.setattr(command, "import_tensorrt", lambda: None)
    shapes = {"image": Profile((1, 8), (2, 8), (4, 8))}
    runner = command._on_tensorrt(shapes, tf32=False)(bundle / "sam_encoder.onnx")
    assert type(runner).__name__ == "TrtRunner"


def test_a_refusal_names_the_command_and_what_its_tolerance_rests_on(broken: Path) -> None:
    path = broken / "sam_encoder.fp16.onnx"
    emulate(path, broken / "rounded.onnx")
    cases = read_golden(broken).cases_for("sam_encoder", "fp16")
    with (
        open_session(broken / "rounded.onnx") as session,
        pytest.raises(GateError) as error,
    ):
        check_session("sam_encoder", session, cases, "fp16", ["fp16", "fp32"])
    said = str(error.value)
    assert "`clipsam diagnose BUNDLE sam_encoder --precision fp16 --case " in said
    assert "provisional: set on small models" in said
    assert error.value.case in {case.name for case in cases}


def test_a_range_leaves_out_what_is_not_finite() -> None:
    found = Range.of(np.array([np.nan, -2, 3, np.inf], np.float16))
    assert (found.low, found.high, found.largest, found.not_finite) == (-2, 3, 3, 2)
    assert Range.of(np.full(2, np.nan)) == Range(0, 0, 2)
