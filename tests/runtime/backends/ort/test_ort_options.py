"""What onnxruntime is told, and that it does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from support.toy_bundle import write_graph

from clipsam.runtime.backends.base import TensorSpec, open_session
from clipsam.runtime.backends.ort.options import session_arguments, session_options

WIDTH = 8


@pytest.fixture
def sum_and_norm(tmp_path: Path) -> Path:
    """y = LayerNormalization(a + b), which onnxruntime would make one kernel of."""
    path = tmp_path / "norm.onnx"
    specs = [TensorSpec(name, "float32", ("n", 3, WIDTH)) for name in "aby"]
    scale = np.linspace(0.5, 2, WIDTH, dtype=np.float32)
    nodes: list[Any] = [
        ("Add", ["a", "b"], "sum", {}),
        ("LayerNormalization", ["sum", "scale", "shift"], "y", {"axis": -1}),
    ]
    write_graph(path, (specs[0], specs[1]), (specs[2],), nodes, {"scale": scale, "shift": scale})
    return path


def _operators(path: Path, arguments: dict[str, Any], written: Path) -> list[str]:
    """Of the graph as onnxruntime rewrote it."""
    options = session_options(onnxruntime, "cpu", 1)
    options.optimized_model_filepath = str(written)
    onnxruntime.InferenceSession(str(path), options, **arguments)
    return sorted(node.op_type for node in onnx.load(written).graph.node)


def test_the_slow_kernel_is_not_used(sum_and_norm: Path, tmp_path: Path) -> None:
    ours = session_arguments("cpu")
    written = tmp_path / "written.onnx"
    assert _operators(sum_and_norm, ours, written) == ["Add", "LayerNormalization"]
    plain = {"providers": ours["providers"]}
    assert _operators(sum_and_norm, plain, written) == ["SkipLayerNormalization"]


def test_a_session_is_opened_with_them(sum_and_norm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = onnxruntime.InferenceSession, []

    def spy(path: str, options: Any, **arguments: Any) -> Any:
        asked.append((options, arguments))
        return real(path, options, **arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    draw = np.random.default_rng(0)
    with open_session(sum_and_norm, "cpu", 1) as session:
        for n in (2, 5, 2):  # buffers are planned anew for every size
            a, b = draw.standard_normal((2, n, 3, WIDTH), np.float32)
            total = a + b
            centred = total - total.mean(axis=-1, keepdims=True)
            scale = np.linspace(0.5, 2, WIDTH, dtype=np.float32)
            normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
            found = session.run({"a": a, "b": b})["y"]
            np.testing.assert_allclose(found, normal * scale + scale, rtol=1e-4, atol=1e-5)
    options, arguments = asked[0]
    assert arguments == session_arguments("cpu")
    assert options.enable_mem_pattern is False
    assert options.intra_op_num_threads == 1
    assert _entry(options, "session.intra_op.allow_spinning") == "0"  # others need the cores


@pytest.mark.parametrize(("provider", "told"), [("cpu", None), ("cuda", "1")])
def test_a_gpu_tells_what_runs_on_the_cpu(provider: str, told: str | None) -> None:
    options = session_options(onnxruntime, provider, None)
    assert options.intra_op_num_threads == 0  # all cores
    assert _entry(options, "session.record_ep_graph_assignment_info") == told


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1"), ("fp16", "0")])
def test_tf32_only_where_it_is_asked_for(precision: str, tf32: str) -> None:
    found = session_arguments("cuda", precision)["providers"]
    assert found == [("CUDAExecutionProvider", {"use_tf32": tf32})]


def _entry(options: Any, name: str) -> str | None:
    try:
        return str(options.get_session_config_entry(name))
    except RuntimeError:  # not set
        return None


def test_a_gpu_is_asked_for_exact_fp32_and_keeps_its_fused_kernels() -> None:
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert session_arguments("cuda") == {"providers": providers, "enable_fallback": 0}
