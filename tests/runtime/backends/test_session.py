"""The contract of a session, which every backend keeps.

`tensorrt-fake` is our TensorRT backend on stand-ins for NVIDIA's libraries (fake_cuda.py,
fake_tensorrt.py): it shows that our code keeps the contract if TensorRT does what NVIDIA documents.
`tensorrt` and `ort-cuda` need a GPU and are skipped without one. `ort-bound` runs on the CPU the
way of binding outputs that `ort-cuda` uses.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from support.gpu import has_cuda
from support.session_graph import INPUTS, feeds, make_graph
from support.toy_bundle import write_graph
from support.trt_engines import fake_box, has_tensorrt, write_fake_engine, write_real_engine

from clipsam.runtime import ProviderError, SessionError
from clipsam.runtime.backends.base import Session, TensorSpec, open_session
from clipsam.runtime.backends.ort.session import OrtSession


@dataclass(frozen=True)
class Backend:
    """A backend under test; add one here and it must pass everything below."""

    provider: str
    damaged: str = r"cannot open bad.onnx on .*: build the bundle again"

    def open(self, path: Path, threads: int | None = 1) -> Session:
        return open_session(path, self.provider, threads)


class BoundOrt(Backend):
    """onnxruntime on the CPU with bound outputs, as on CUDA."""

    def open(self, path: Path, threads: int | None = 1) -> Session:
        session = super().open(path, threads)
        assert isinstance(session, OrtSession)
        session.keeps = True
        return session


@dataclass(frozen=True)
class TensorRT(Backend):
    """An engine is built for every sound graph before it is opened."""

    build: Callable[[Path], object] = write_fake_engine

    def open(self, path: Path, threads: int | None = 1) -> Session:
        with contextlib.suppress(Exception):
            onnx.checker.check_model(path)
            if not list(path.parent.glob(f"engines/*/{path.stem}.engine")):
                self.build(path)
        return super().open(path, threads)


NO_ENGINE = r"has no TensorRT engine of bad: build it on this box with `python -m clipsam\.export\."


def backends() -> list[Any]:
    no_gpu = pytest.mark.skipif(not has_cuda(), reason="no GPU, or onnxruntime without CUDA")
    no_trt = pytest.mark.skipif(not has_tensorrt(), reason="no GPU, or no TensorRT")
    fake = TensorRT("tensorrt", NO_ENGINE)
    real = TensorRT("tensorrt", NO_ENGINE, write_real_engine)
    return [
        pytest.param(Backend("cpu"), id="ort-cpu"),
        pytest.param(BoundOrt("cpu"), id="ort-bound"),
        pytest.param(Backend("cuda"), id="ort-cuda", marks=[pytest.mark.gpu, no_gpu]),
        pytest.param(fake, id="tensorrt-fake"),
        pytest.param(real, id="tensorrt", marks=[pytest.mark.gpu, no_trt]),
    ]


@pytest.fixture(scope="module", params=backends())
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    is_fake = getattr(request.param, "build", None) is write_fake_engine
    with fake_box() if is_fake else contextlib.nullcontext():
        yield request.param


@pytest.fixture(scope="module")
def graph(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each backend has a file of its own, with its own engine beside it."""
    return make_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def session(backend: Backend, graph: Path) -> Iterator[Session]:
    with backend.open(graph) as opened:
        yield opened


def test_a_session_describes_its_tensors_and_provider(session: Session, backend: Backend) -> None:
    assert list(session.inputs) == ["left", "right", "picture"]
    assert list(session.outputs) == ["product", "brightness", "same"]
    assert session.provider == backend.provider
    for found, declared in zip(session.inputs.values(), INPUTS, strict=True):
        assert (found.name, found.dtype, len(found.shape)) == (
            declared.name,
            declared.dtype,
            len(declared.shape),
        )
    assert str(session.inputs["picture"]) == "picture uint8[1,4]"


def test_a_run_computes_the_graph_for_any_shape(session: Session) -> None:
    for n, k in ((5, 2), (1, 1), (7, 3)):
        fed = feeds(n, k)
        found = session.run(fed)
        assert list(found) == list(session.outputs)
        np.testing.assert_allclose(found["product"], fed["left"].T @ fed["right"], rtol=1e-4)
        np.testing.assert_array_equal(found["brightness"], fed["picture"].astype(np.float32))
        assert found["product"].dtype == np.float32


def test_only_the_outputs_that_are_wanted_come_back(session: Session) -> None:
    fed = feeds()
    every = session.run(fed)
    for wanted in (["same"], ("same", "product"), {"brightness"}):
        found = session.run(fed, wanted)
        assert list(found) == [name for name in session.outputs if name in wanted]
        for name, array in found.items():
            np.testing.assert_array_equal(array, every[name])
    for wrong in (["same", "sum"], []):
        with pytest.raises(SessionError, match=r"returns \['brightness', .* was asked for \["):
            session.run(fed, wrong)


def test_outputs_can_stay_on_the_device(session: Session) -> None:
    """And be fed to a run there, whatever ran in between."""
    if not session.keeps:
        with pytest.raises(SessionError, match="cannot stay on 'cpu': use run"):
            session.keep(feeds())
        return
    fed = feeds(3, 3)
    every = session.run(fed)
    kept = session.keep(fed, ["product", "same"])
    assert list(kept) == ["product", "same"]
    other = session.run(feeds(3, 3, seed=4))
    assert not np.array_equal(other["product"], every["product"])
    for name, array in kept.items():
        assert (array.shape, array.dtype) == (every[name].shape, every[name].dtype.name)
        np.testing.assert_array_equal(array.fetch(), every[name])
    again = session.run({**fed, "left": kept["same"]})
    np.testing.assert_array_equal(again["product"], every["product"])
    np.testing.assert_array_equal(kept["same"].fetch(), every["same"])  # reading left it alone
    with pytest.raises(SessionError, match=r"right float32\[n,k\] was fed float32\[2,"):
        session.run({**fed, "right": replace(kept["product"], shape=(2, 3))})
    elsewhere = replace(kept["same"], provider="another")
    with pytest.raises(SessionError, match="in the memory of 'another', and runs on"):
        session.run({**fed, "left": elsewhere})


def test_order_of_feeds_does_not_matter(session: Session) -> None:
    fed = feeds()
    found = session.run(dict(reversed(fed.items())))
    np.testing.assert_array_equal(found["product"], session.run(fed)["product"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"left": np.zeros((5, 3))}, r"left float32\[n,3\] was fed float64\[5,3\]"),
    "uint8": ({"picture": np.zeros((1, 4), np.int8)}, r"picture uint8\[1,4\] was fed int8\[1,4\]"),
    "size": ({"left": np.zeros((5, 4), np.float32)}, r"left float32\[n,3\] was fed float32\[5,4\]"),
    "rank": ({"left": np.zeros(3, np.float32)}, r"left .* was fed float32\[3\]"),
    "free axis": ({"right": np.zeros((4, 2), np.float32)}, r"right .* was fed float32\[4,2\]"),
    "empty": ({"right": np.zeros((5, 0), np.float32)}, r"right .* was fed float32\[5,0\]"),
    "list": ({"left": [[0.0] * 3] * 5}, "left .* was fed a list, not a NumPy array"),
    "scalar": ({"left": 1.0}, "left .* was fed a float, not a NumPy array"),
    "none": ({"left": None}, "left .* was fed a NoneType"),
    "big endian": ({"left": np.zeros((5, 3), ">f4")}, r"left .* was fed >?f"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_named(session: Session, name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(SessionError, match=message):
        session.run({**feeds(), **changes})
    session.run(feeds())  # and it still runs


def test_missing_and_unknown_feeds_are_refused(session: Session) -> None:
    fed = feeds()
    for wrong in ({}, {k: v for k, v in fed.items() if k != "left"}, {**fed, "extra": fed["left"]}):
        with pytest.raises(SessionError, match=r"takes \['left', 'picture', 'right'\] and was fed"):
            session.run(wrong)


def test_views_and_read_only_arrays_can_be_fed(session: Session) -> None:
    fed = feeds()
    expected = session.run(fed)["product"]
    large = np.zeros((10, 6), np.float32)
    large[::2, ::2] = fed["left"]
    turned = np.asfortranarray(fed["right"])
    turned.flags.writeable = False
    found = session.run({**fed, "left": large[::2, ::2], "right": turned})["product"]
    np.testing.assert_array_equal(found, expected)


def test_results_belong_to_the_caller(session: Session) -> None:
    fed = feeds()
    first = session.run(fed)
    kept = {name: array.copy() for name, array in first.items()}
    session.run(feeds(seed=1))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])  # a later run does not touch them
        assert array.flags.writeable
        array[:] = -1
    again = session.run(fed)
    for name, array in again.items():
        np.testing.assert_array_equal(array, kept[name])  # and changing them changes no run
    assert (fed["left"] != -1).all()  # an output that is an input as it is, is a copy


def test_a_closed_session_says_so(backend: Backend, graph: Path) -> None:
    opened = backend.open(graph)
    opened.close()
    with pytest.raises(SessionError, match="is closed: open it again"):
        opened.run(feeds())
    opened.close()  # twice is fine


def test_a_session_is_closed_when_its_block_ends(backend: Backend, graph: Path) -> None:
    with pytest.raises(KeyError), backend.open(graph) as opened:
        raise KeyError
    with pytest.raises(SessionError, match="is closed"):
        opened.run(feeds())


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_python_threads_share_a_session(backend: Backend, graph: Path, threads: int | None) -> None:
    """Python threads share a session, and every thread gets its own result."""
    with backend.open(graph, threads) as opened:
        fed = [feeds(n=3 + i, seed=i) for i in range(4)]
        expected = [opened.run(one)["product"] for one in fed]
        wrong: list[int] = []

        def work(index: int) -> None:
            for _ in range(30):
                if not np.array_equal(opened.run(fed[index])["product"], expected[index]):
                    wrong.append(index)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []


@pytest.mark.parametrize("data", [b"", b"garbage" * 50, None], ids=["empty", "garbage", "cut"])
def test_a_damaged_graph_is_refused(
    backend: Backend,
    graph: Path,
    tmp_path: Path,
    data: bytes | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(graph.read_bytes()[:-40] if data is None else data)
    with pytest.raises(SessionError, match=backend.damaged):
        backend.open(path)
    assert capfd.readouterr().err == ""


def test_a_graph_that_is_not_there(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"cannot open none\.onnx"):
        backend.open(tmp_path / "none.onnx")


def test_a_run_that_fails_says_so_in_one_sentence(
    backend: Backend, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The engine's own error comes back as one sentence, and nothing is printed."""
    path = tmp_path / "fails.onnx"
    spec = TensorSpec("x", "float32", ("n",))
    nodes: list[Any] = [("Reshape", ["x", "shape"], "y", {})]
    write_graph(
        path, (spec,), (TensorSpec("y", "float32", (2, 2)),), nodes, {"shape": _two_by_two()}
    )
    with backend.open(path) as opened:
        assert opened.run({"x": np.arange(4, dtype=np.float32)})["y"].shape == (2, 2)
        with pytest.raises(SessionError, match=r"failed on .*: free some memory") as error:
            opened.run({"x": np.arange(5, dtype=np.float32)})
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def _two_by_two() -> NDArray[np.int64]:
    return np.array([2, 2])


def test_unnamed_free_axes_are_independent() -> None:
    spec, axes = TensorSpec("x", "float32", ("?", "?")), dict[str, int]()
    assert spec.problem(np.zeros((2, 3), np.float32), axes) is None
    assert axes == {}


def test_an_unknown_provider_or_precision_is_refused(tmp_path: Path) -> None:
    path = make_graph(tmp_path)
    message = "Unknown provider 'tpu': use one of cpu, cuda, tensorrt"
    with pytest.raises(ProviderError, match=message):
        open_session(path, "tpu")
    with pytest.raises(SessionError, match="Unknown precision 'fp8': use one of fp32, fp16, bf16"):
        open_session(path, "cpu", precision="fp8")
    for provider in ("cuda", "tensorrt"):
        message = (
            f"'int8-dynamic' is for provider 'cpu' alone and cannot run on '{provider}': use "
            f"provider 'cpu', or with '{provider}' precision 'fp32'."
        )
        with pytest.raises(ProviderError, match=message):
            open_session(path, provider, precision="int8-dynamic")
    with open_session(path, "cpu", precision="int8-dynamic") as session:
        assert session.precision == "int8-dynamic"


def test_backends_are_imported_late() -> None:
    backends = ["clipsam.runtime.backends.ort.session", "clipsam.runtime.backends.trt.session"]
    code = (
        "import sys; from clipsam.runtime import pipeline; "
        f"sys.exit(any(m in sys.modules for m in {[*backends, 'onnxruntime', 'tensorrt']}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
