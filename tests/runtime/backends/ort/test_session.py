"""What only the onnxruntime backend has: its providers, and outputs bound to arrays."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.gpu import has_cuda
from support.session_graph import feeds, make_graph
from support.toy_bundle import write_graph

from clipsam.runtime import MissingBackendError, ProviderError, SessionError
from clipsam.runtime.backends.base import TensorSpec, open_session
from clipsam.runtime.backends.ort.session import OrtSession


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_graph(tmp_path_factory.mktemp("graph"))


@pytest.mark.skipif(has_cuda(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused(graph: Path) -> None:
    with pytest.raises(ProviderError, match="use provider 'cpu'"):
        open_session(graph, "cuda")


def test_a_silent_fallback_is_refused(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu lists CUDA on a machine without a GPU, then runs on the CPU."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    def on_cpu(path: str, *_: object, **__: object) -> Any:
        return real(path, providers=["CPUExecutionProvider"])

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    with pytest.raises(ProviderError, match=r"would run small.onnx on the CPU: check the GPU"):
        open_session(graph, "cuda")


@pytest.mark.parametrize(("provider", "extra"), [("cpu", "ort"), ("cuda", "ort-gpu")])
def test_no_onnxruntime_names_the_extra(
    graph: Path, monkeypatch: pytest.MonkeyPatch, provider: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # import raises ImportError
    with pytest.raises(MissingBackendError, match=rf"pip install 'clipsam\[{extra}\]'"):
        OrtSession(graph, provider)


def test_bf16_on_the_cpu_is_refused(graph: Path) -> None:
    with pytest.raises(ProviderError, match="'bf16' is for provider 'tensorrt' alone"):
        open_session(graph, "cpu", precision="bf16")


def test_cuda_is_asked_for_exact_fp32_and_no_fallback(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What onnxruntime is told on a machine with CUDA; it says nothing of what CUDA then does."""
    import onnxruntime

    real, asked = onnxruntime.InferenceSession, []

    class OnGpu:
        def __init__(self, path: str, options: Any, providers: list[Any], **_: Any) -> None:
            asked.append((options, providers))
            self.real = real(path, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def get_provider_graph_assignment_info(self) -> list[Any]:
            return []

    def preload() -> None:
        print("Failed to load libcublas")

    monkeypatch.setattr(onnxruntime, "InferenceSession", OnGpu)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with open_session(graph, "cuda", precision="fp16") as session:
        assert session.device_id == 0
        fed = feeds()
        found = session.run(fed)  # with bound outputs
    np.testing.assert_allclose(found["product"], fed["left"].T @ fed["right"], rtol=1e-4)
    options, providers = asked[0]
    assert providers == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    assert capsys.readouterr().out == ""
    with open_session(graph, "cuda", device_id=1) as session:
        assert session.device_id == 1
    assert asked[1][1] == [("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1"})]


def test_outputs_stay_on_the_gpu_that_was_chosen(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(graph, "cpu") as session:
        assert isinstance(session, OrtSession)
        opened, bound = session._session, []
        real = opened.io_binding()

        class Binding:
            def bind_output(self, name: str, device: str = "cpu", device_id: int = 0) -> None:
                bound.append((name, device, device_id))
                real.bind_output(name)

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        on_gpu = SimpleNamespace(
            io_binding=Binding, run_with_iobinding=lambda _: opened.run_with_iobinding(real)
        )
        monkeypatch.setattr(session, "_session", on_gpu)
        session.keeps, session.provider, session.device_id = True, "cuda", 1
        assert session.keep(feeds(), ["product"])["product"].provider == "cuda"
        session.provider = "cpu"
    assert bound == [("product", "cuda", 1)]


def test_a_gpu_that_onnxruntime_does_not_find_is_named(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def refuse(*_: object, **__: object) -> Any:  # as onnxruntime's CUDA provider does
        raise RuntimeError("Invalid device ID: 3, must be between 0 (inclusive) and 1 (exclusive).")

    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ProviderError, match=r"finds no GPU 3 \(Invalid device ID: 3, .* choose"):
        open_session(graph, "cuda", device_id=3)


def test_onnxruntime_prints_nothing_and_tries_nothing_else(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    tried = []

    def fail(_: object, providers: Any, *__: object) -> None:
        tried.append(providers)
        raise RuntimeError("no such device")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(SessionError, match=r"cannot open small.onnx on cpu \(no such device\)"):
        OrtSession(graph, "cpu")
    assert capsys.readouterr().out == ""
    assert len(tried) == 1


def test_names_of_tensors_that_are_not_utf8(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin.onnx"
    data = graph.read_bytes()
    assert b"left" in data
    path.write_bytes(data.replace(b"left", b"l\xe9ft"))
    with pytest.raises(SessionError, match=r"cannot open latin.onnx on cpu"):
        OrtSession(path, "cpu")


def test_bound_outputs_of_unknown_shape_come_back(tmp_path: Path) -> None:
    """An output whose axis no input has is taken from onnxruntime, beside one that was bound."""
    path = tmp_path / "found.onnx"
    spec = TensorSpec("x", "float32", ("n",))
    outputs = (
        TensorSpec("where", "int64", (1, "found")),
        TensorSpec("twice", "float32", ("n",)),
    )
    nodes: list[Any] = [("NonZero", ["x"], "where", {}), ("Add", ["x", "x"], "twice", {})]
    write_graph(path, (spec,), outputs, nodes, {})
    with open_session(path, "cpu", 1) as session:
        assert isinstance(session, OrtSession)
        session.keeps = True
        for values in ([0, 1, 0, 2], [3, 0]):
            found = session.run({"x": np.array(values, np.float32)})
            assert list(found) == ["where", "twice"]
            np.testing.assert_array_equal(found["where"], [np.flatnonzero(values)])
            np.testing.assert_array_equal(found["twice"], 2 * np.array(values))


def test_an_output_of_another_shape_than_declared_is_refused(tmp_path: Path) -> None:
    """onnxruntime returns it all the same; the fuzzer found what then fails later."""
    path = tmp_path / "more.onnx"
    spec = TensorSpec("x", "float32", ("n",))
    write_graph(path, (spec,), (TensorSpec("y", "float32", ("m",)),), TWICE, {})
    path.write_bytes(path.read_bytes().replace(b"\x12\x01m", b"\x12\x01n"))
    with (
        open_session(path, "cpu", 1) as session,
        pytest.raises(SessionError, match=r"returned y \[4\] where it declares y float32\[n\]"),
    ):
        session.run({"x": np.zeros(2, np.float32)})


TWICE: list[Any] = [("Concat", ["x", "x"], "y", {"axis": 0})]
