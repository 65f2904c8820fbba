"""What computes must be on the device: on placements that are made up, and on onnxruntime's own."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from support.session_graph import make_graph

from clipsam.runtime import ProviderError
from clipsam.runtime.backends.ort.placement import ask_for_placement, check_placement

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Placed:
    """A session that put operators on providers."""

    def __init__(self, **operators: list[str]) -> None:
        self._operators = operators

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(provider: str, names: list[str]) -> SimpleNamespace:
            nodes = [SimpleNamespace(op_type=n, name=f"n{i}") for i, n in enumerate(names)]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        return [part(provider, names) for provider, names in self._operators.items()]


@pytest.mark.parametrize(
    "operator",
    ["MatMul", "Gemm", "Conv", "ConvTranspose", "Softmax", "Attention", "MultiHeadAttention",
     "FusedMatMul", "LayerNormalization"],
)  # fmt: skip
def test_what_computes_is_refused_on_the_cpu(operator: str) -> None:
    session = Placed(**{CUDA: ["MatMul"] * 9, CPU: ["Sin", operator]})
    with pytest.raises(
        ProviderError,
        match=rf"cuda was asked for but onnxruntime would run 2 of 11 operators of clip.onnx on "
        rf"the CPU, among them {operator} 'n1': build the bundle again with --opset 20",
    ):
        check_placement(session, "cuda", "clip.onnx")


def test_what_does_not_compute_may_stay(caplog: pytest.LogCaptureFixture) -> None:
    session = Placed(**{CUDA: ["MatMul"], CPU: ["Sin", "Cos", "Concat", "Equal"]})
    with caplog.at_level(logging.INFO, "clipsam"):
        check_placement(session, "cuda", "clip.onnx")
    assert "4 of 5 operators run on the CPU (Sin 'n0', Cos 'n1', Concat 'n2' and 1 more)" in (
        caplog.text
    )
    caplog.clear()
    check_placement(Placed(**{CUDA: ["MatMul"]}), "cuda", "clip.onnx")
    assert not caplog.text


def test_onnxruntime_tells_its_placement(tmp_path: Path) -> None:
    """On a machine without a GPU all of it is on the CPU, which is refused for any other."""
    options = onnxruntime.SessionOptions()
    ask_for_placement(onnxruntime, options)
    session = onnxruntime.InferenceSession(make_graph(tmp_path), options, providers=[CPU])
    with pytest.raises(ProviderError, match=r"would run \d of \d operators of .* MatMul"):
        check_placement(session, "cuda", "small.onnx")


def test_an_onnxruntime_that_cannot_tell_refuses_any_node_itself() -> None:
    options = onnxruntime.SessionOptions()
    ask_for_placement(SimpleNamespace(InferenceSession=object), options)
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    check_placement(object(), "cuda", "clip.onnx")
