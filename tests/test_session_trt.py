"""The TensorRT backend's control flow, on stand-ins for NVIDIA's two libraries.

fake_tensorrt.py keeps the rules that NVIDIA documents and computes by onnxruntime on "device"
memory; fake_cuda.py runs what is queued only when it is waited for. So these tests show that
shapes, addresses, copies, captures and frees are right by those rules, that every failure becomes
an error with TensorRT's words and leaves nothing behind. They show nothing of TensorRT's numbers
or speed. tests/test_session.py has the contract, for these stand-ins and for a GPU.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import PROTOTYPES, FakeCuda
from fake_tensorrt import LARGEST, SCRATCH, DataType, FakeTensorRT, Severity
from numpy.typing import NDArray
from session_graph import INPUTS, OUTPUTS, feeds, make_graph
from trt_engines import FAKE_BOX, fake_box, make_sidecar, write_fake_engine

from clipsam.runtime import (
    EngineError,
    MissingBackendError,
    ProviderError,
    SessionError,
)
from clipsam.runtime.engine_file import Box, write_engine
from clipsam.runtime.engine_sidecar import BuildFlags, this_platform
from clipsam.runtime.session import TensorSpec, open_session
from clipsam.runtime.session_trt import SHAPES_KEPT, TrtSession
from clipsam.runtime.tensorrt_library import Words, tensorrt_logger

IN_CAPTURE = {
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiateWithFlags",
    "cudaGraphDestroy",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_graph(tmp_path_factory.mktemp("graph"))
    write_fake_engine(path)
    return path


@pytest.fixture
def box() -> Iterator[tuple[FakeCuda, FakeTensorRT]]:
    with fake_box() as libraries:
        yield libraries


@pytest.fixture
def cuda(box: tuple[FakeCuda, FakeTensorRT]) -> FakeCuda:
    return box[0]


@pytest.fixture
def trt(box: tuple[FakeCuda, FakeTensorRT]) -> FakeTensorRT:
    return box[1]


def right(found: dict[str, NDArray[Any]], fed: dict[str, NDArray[Any]]) -> bool:
    """Whether these are the graph's results."""
    return (
        np.allclose(found["product"], fed["left"].T @ fed["right"], rtol=1e-4)
        and np.array_equal(found["brightness"], fed["picture"].astype(np.float32))
        and np.array_equal(found["same"], fed["left"])
    )


def test_tensors_come_from_the_sidecar_in_its_order(graph: Path, trt: FakeTensorRT) -> None:
    """The engine lists them in another order and calls every free axis -1."""
    with open_session(graph, "tensorrt") as session:
        assert tuple(session.inputs.values()) == INPUTS
        assert tuple(session.outputs.values()) == OUTPUTS
        assert isinstance(session, TrtSession)
        assert (session.precision, session.sidecar.tensorrt) == ("fp32", trt.__version__)


def test_memory_is_taken_once_for_the_largest_shapes(graph: Path, cuda: FakeCuda) -> None:
    with open_session(graph, "tensorrt") as session:
        sizes = sorted(len(block) for block in cuda.blocks["device"].values())
        left, right_, product = 3 * 4 * LARGEST, 4 * LARGEST * LARGEST, 3 * 4 * LARGEST
        assert sizes == sorted([4, left, right_, product, 16, left, SCRATCH])
        assert sorted(len(block) for block in cuda.blocks["host"].values()) == sorted(sizes)[:-1]
        taken = {name: cuda.count(name) for name in ("cudaMalloc", "cudaHostAlloc")}
        for n in (1, LARGEST, 3, 1):
            fed = feeds(n, LARGEST)
            assert right(session.run(fed), fed)
        assert taken == {name: cuda.count(name) for name in taken}


def test_a_graph_for_every_set_of_shapes(graph: Path, cuda: FakeCuda, trt: FakeTensorRT) -> None:
    """The first run of a shape is queued as it is, later ones replay the graph made after it."""
    with open_session(graph, "tensorrt") as session:
        assert isinstance(session, TrtSession)
        for n, k, launches, graphs in (
            (2, 2, 0, 1),
            (2, 2, 1, 1),
            (3, 2, 1, 2),
            (2, 3, 1, 3),
            (2, 2, 2, 3),
            (3, 2, 3, 3),
        ):
            fed = feeds(n, k, seed=launches)
            assert right(session.run(fed), fed)
            assert cuda.count("cudaGraphLaunch") == launches
            assert len(cuda.executable) == len(trt.contexts) == graphs
        assert session.graph_problem is None


def test_shapes_beyond_the_limit_push_out_the_one_longest_unused(
    graph: Path, cuda: FakeCuda, trt: FakeTensorRT
) -> None:
    with open_session(graph, "tensorrt") as session:
        shapes = [(n, 1 + n // LARGEST) for n in range(1, LARGEST + 1)]
        assert len(shapes) == SHAPES_KEPT
        for n, k in shapes:
            session.run(feeds(n, k))
        session.run(feeds(*shapes[0]))  # so that the second is the one longest unused
        assert cuda.count("cudaGraphLaunch") == 1
        session.run(feeds(1, 7))
        assert len(cuda.executable) == len(trt.contexts) == SHAPES_KEPT
        for shape, launches in ((shapes[0], 2), (shapes[2], 3), (shapes[1], 3)):
            fed = feeds(*shape)
            assert right(session.run(fed), fed)
            assert cuda.count("cudaGraphLaunch") == launches  # the last had been forgotten


def test_graphs_can_be_left_out(graph: Path, cuda: FakeCuda) -> None:
    with TrtSession(graph, cuda_graphs=False) as session:
        for _ in range(3):
            fed = feeds()
            assert right(session.run(fed), fed)
        assert isinstance(session, TrtSession)
        assert session.graph_problem == "they were not asked for"
    assert cuda.count("cudaStreamBeginCapture") == 0


def test_a_failing_capture_is_reported_once_and_runs_go_on(
    graph: Path, cuda: FakeCuda, trt: FakeTensorRT, caplog: pytest.LogCaptureFixture
) -> None:
    trt.refuse_run = "capturing"
    with caplog.at_level(logging.WARNING), open_session(graph, "tensorrt") as session:
        for n in (2, 2, 3, 3):
            fed = feeds(n)
            assert right(session.run(fed), fed)
        assert isinstance(session, TrtSession)
        assert "IExecutionContext::enqueueV3: Error Code 1" in str(session.graph_problem)
        assert cuda.count("cudaStreamBeginCapture") == 1  # not tried again
        assert cuda.count("cudaGraphLaunch") == 0
        assert "capturing" not in cuda.held()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "small runs without CUDA graphs, which is slower and gives the same" in caplog.text
    assert cuda.held() == {}


@pytest.mark.parametrize("name", sorted(IN_CAPTURE))
def test_a_capture_that_cuda_refuses(graph: Path, cuda: FakeCuda, name: str) -> None:
    cuda.failing = {name: 1}
    with open_session(graph, "tensorrt") as session:
        for _ in range(3):
            fed = feeds()
            assert right(session.run(fed), fed)
        assert isinstance(session, TrtSession)
        assert session.graph_problem is not None
        assert session.graph_problem.startswith(f"{name} failed (invalid argument)")
    assert set(cuda.held()) <= {"recorded"}  # what CUDA refused to take back


def test_shapes_outside_the_profile(graph: Path, cuda: FakeCuda) -> None:
    with open_session(graph, "tensorrt") as session:
        message = (
            r"Wrong input: right float32\[n,k\] was fed \[5, 17\], and the engine was built for "
            r"\[1, 1\] to \[16, 16\]: stay within\."
        )
        with pytest.raises(SessionError, match=message):
            session.run(feeds(5, LARGEST + 1))
        assert cuda.count("cudaMemcpyAsync") == 0
        fed = feeds(5, LARGEST)
        assert right(session.run(fed), fed)


# Switch of the stand-in -> what the error must say.
REFUSALS = {
    "refuse_start": r"TensorRT 10\.13\.3\.9 does not start \(CUDA initialization failure.*\): ch",
    "refuse_plan": r"TensorRT cannot load small\.engine \(The engine plan file is generated on an "
    r"incompatible device\): build it on this box with `python export/build_engines\.py",
    "refuse_context": r"TensorRT failed on tensorrt \(no execution context: OutOfMemory .*\): free",
    "refuse_shape": r"TensorRT failed on tensorrt \(left \[16, 3\] refused: Static dimension mism",
    "unknown_size": r"TensorRT failed on tensorrt \(the size of product is unknown: TensorRT gave",
}


@pytest.mark.parametrize("switch", REFUSALS)
def test_what_tensorrt_refuses_when_opening(
    graph: Path, cuda: FakeCuda, trt: FakeTensorRT, switch: str
) -> None:
    """One sentence with TensorRT's own words, and nothing is kept."""
    setattr(trt, switch, True)
    with pytest.raises(SessionError, match=f"^{REFUSALS[switch]}") as caught:
        open_session(graph, "tensorrt")
    assert "\n" not in str(caught.value)
    assert cuda.held() == {}
    del caught  # its traceback holds the frames' contexts
    assert trt.contexts == set()


@pytest.mark.parametrize(
    ("switch", "words"),
    [
        ("refuse_run", r"\(execution: IExecutionContext::enqueueV3: Error Code 1"),
        ("refuse_context", r"\(no execution context: OutOfMemory"),
        ("refuse_shape", r"\(left \[4, 3\] refused: Static dimension"),
        ("refuse_profile", r"\(no optimization profile: TensorRT gave no reason\)"),
        ("refuse_address", r"\(left refused: TensorRT gave no reason\)"),
    ],
)
def test_what_tensorrt_refuses_when_running(
    graph: Path, cuda: FakeCuda, trt: FakeTensorRT, switch: str, words: str
) -> None:
    with open_session(graph, "tensorrt") as session:
        session.run(feeds(3))
        setattr(trt, switch, True)
        message = (
            f"TensorRT failed on tensorrt {words}.*: free some memory, or build it on this box"
        )
        with pytest.raises(SessionError, match=message):
            session.run(feeds(4))
        assert all(not queue for queue in cuda.streams.values())
        setattr(trt, switch, False)
        for n in (3, 4, 4):
            fed = feeds(n)
            assert right(session.run(fed), fed)
    assert cuda.held() == {}


def scenario(graph: Path) -> TrtSession:
    """Open, run two shapes and one of them again, close; every result is right."""
    with open_session(graph, "tensorrt") as session:
        for n in (2, 3, 2):
            fed = feeds(n)
            assert right(session.run(fed), fed)
    assert isinstance(session, TrtSession)
    return session


def all_calls(graph: Path) -> list[str]:
    with fake_box() as (cuda, _):
        scenario(graph)
        return cuda.names


def test_every_cuda_call_failing_in_turn(graph: Path) -> None:
    """Each of the calls of a session's life fails once. Recording fails: the session goes on
    without. Anything else is a SessionError. Nothing is kept but what CUDA refused to take."""
    names = all_calls(graph)
    assert len(names) > 70
    for index, name in enumerate(names):
        with fake_box() as (cuda, trt):
            cuda.fail_call = index
            if name in IN_CAPTURE:
                assert scenario(graph).graph_problem is not None
            else:
                with pytest.raises(SessionError, match="unspecified launch failure"):
                    scenario(graph)
            kept = cuda.held()
            refused = {
                "cudaFree": {"device": 1},
                "cudaFreeHost": {"host": 1},
                "cudaStreamDestroy": {"streams": 1},
                "cudaGraphExecDestroy": {"graphs": 1},
                "cudaGraphDestroy": {"recorded": 1},
            }
            assert kept == refused.get(name, {}), (index, name)
            # A recorded graph that CUDA did not take back holds on to its context in the stand-in.
            assert trt.contexts == set() or "recorded" in kept or "graphs" in kept


def test_closing_an_engine_that_failed(graph: Path, cuda: FakeCuda) -> None:
    """After a fault CUDA refuses everything: closing says so once, and is done."""
    session = open_session(graph, "tensorrt")
    session.run(feeds())
    cuda.failing = dict.fromkeys(PROTOTYPES, 719)
    with pytest.raises(SessionError, match="unspecified launch failure"):
        session.run(feeds())
    with pytest.raises(SessionError, match="unspecified launch failure"):
        session.close()
    session.close()
    with pytest.raises(SessionError, match="is closed: open it again"):
        session.run(feeds())


def test_one_run_at_a_time(graph: Path, cuda: FakeCuda) -> None:
    """Another thread's run waits while one is under way: they use the same memory."""
    with open_session(graph, "tensorrt") as session:
        mine, theirs = feeds(seed=1), feeds(seed=2)
        found: list[dict[str, NDArray[Any]]] = []
        other = threading.Thread(target=lambda: found.append(session.run(theirs)))

        def meanwhile() -> None:
            other.start()
            other.join(0.2)  # far longer than a run of this graph
            assert found == []

        cuda.on_wait = meanwhile
        assert right(session.run(mine), mine)
        other.join()
        assert right(found[0], theirs)


def test_close_waits_for_a_run(graph: Path, cuda: FakeCuda) -> None:
    session = open_session(graph, "tensorrt")
    assert isinstance(session, TrtSession)
    closing = threading.Thread(target=session.close)
    with session._lock:
        closing.start()
        assert cuda.count("cudaFree") == 0
    closing.join()
    assert cuda.held() == {}


def test_a_thread_that_uses_another_gpu(graph: Path, cuda: FakeCuda) -> None:
    """A session stays on the GPU it was opened on, and leaves the thread's choice as it was."""
    with open_session(graph, "tensorrt") as session:
        cuda._here.device = 1
        fed = feeds()
        assert right(session.run(fed), fed)
        assert cuda._here.device == 1
    assert cuda._here.device == 1
    assert cuda.held() == {}


def test_code_in_a_plan_runs_only_where_the_sidecar_has_it(
    tmp_path: Path, trt: FakeTensorRT
) -> None:
    path = make_graph(tmp_path)
    for compatible in (False, True):
        write_fake_engine(path, flags=BuildFlags(version_compatible=compatible))
        with open_session(path, "tensorrt"):
            assert trt.host_code is compatible


def test_a_plan_is_checked_before_tensorrt_sees_it(tmp_path: Path, trt: FakeTensorRT) -> None:
    path = make_graph(tmp_path)
    engine = write_fake_engine(path)
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    with pytest.raises(EngineError, match=r"small\.engine was altered .*--engines-only"):
        open_session(path, "tensorrt")
    assert trt.logger is None  # no runtime was made


def test_another_onnx_file(tmp_path: Path, trt: FakeTensorRT) -> None:
    path = make_graph(tmp_path)
    write_fake_engine(path)
    with path.open("ab") as file:
        file.write(b"\x32\x00")  # another field of the format
    with pytest.raises(
        EngineError, match="was built from another ONNX file than the bundle's small"
    ):
        open_session(path, "tensorrt")
    with pytest.raises(EngineError, match="was built from another ONNX file"):
        open_session(path, "tensorrt", sha256="0" * 64)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inputs", INPUTS[:2]),
        ("outputs", (*OUTPUTS, TensorSpec("more", "float32", (1,)))),
        ("outputs", (*OUTPUTS[:2], TensorSpec("same", "float16", ("n", 3)))),
        ("inputs", (TensorSpec("left", "float32", ("n", 4)), *INPUTS[1:])),
    ],
)
def test_a_sidecar_of_other_tensors(
    tmp_path: Path, cuda: FakeCuda, field: str, value: tuple[TensorSpec, ...]
) -> None:
    path = make_graph(tmp_path)
    write_fake_engine(path, **{field: value})
    with pytest.raises(
        EngineError, match=r"The engine has the tensors .* where its sidecar has .*"
    ):
        open_session(path, "tensorrt")
    assert cuda.held() == {}


def test_tensors_that_are_not_supported(graph: Path, trt: FakeTensorRT) -> None:
    trt.host_tensor = "right"
    with pytest.raises(EngineError, match=r"The engine's tensor right \(FLOAT\) is of a kind"):
        open_session(graph, "tensorrt")
    trt.host_tensor, trt.kind = None, DataType.BF16
    with pytest.raises(EngineError, match=r"\(BF16\) is of a kind that is not supported: build it"):
        open_session(graph, "tensorrt")


def test_no_tensorrt(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = (
        r"Provider 'tensorrt' needs TensorRT \(.*\): pip install 'clipsam\[trt\]', or on Jetso"
    )
    with pytest.raises(MissingBackendError, match=message):
        open_session(graph, "tensorrt")


def test_a_tensorrt_that_does_not_load(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"TensorRT is installed but cannot be loaded \(libnvinfer\.so\.10: cannot open\)"
    with pytest.raises(MissingBackendError, match=message):
        open_session(graph, "tensorrt")


def test_an_old_tensorrt(graph: Path) -> None:
    with (
        fake_box(version="8.6.1.6"),
        pytest.raises(MissingBackendError, match=r"TensorRT 8\.6\.1\.6 is too old, it must be 10"),
    ):
        open_session(graph, "tensorrt")


def test_tensorrt_11_is_the_same(graph: Path, tmp_path: Path) -> None:
    path = make_graph(tmp_path)
    write_fake_engine(path, Box("11.4.0.106", (8, 9), "Fake GPU"))
    with fake_box(version="11.4.0.106") as (cuda, _):
        scenario(path)
        assert cuda.held() == {}


def test_no_gpu(graph: Path, cuda: FakeCuda) -> None:
    cuda.failing = {"cudaGetDeviceCount": 100}
    with pytest.raises(ProviderError, match="There is no NVIDIA GPU to run on"):
        open_session(graph, "tensorrt")


def test_the_words_of_tensorrt() -> None:
    words = Words(kept=4)
    assert words.last() == "TensorRT gave no reason"
    words.add("INFO", "loaded")
    words.add("VERBOSE", "trying")
    assert words.last() == "TensorRT gave no reason"
    words.add("WARNING", "using an engine\n of another device.")
    assert words.last() == "using an engine of another device"
    words.add("ERROR", "first.")
    words.add("INTERNAL_ERROR", "second")
    assert words.last() == "first.; second"
    for number in range(9):
        words.add("ERROR", f"no {number}")
    assert words.last() == "no 6; no 7; no 8"
    words.add("ERROR", "long " * 500)
    assert len(words.last()) <= 600
    words.clear()
    assert words.last() == "TensorRT gave no reason"


def test_the_words_of_another_thread() -> None:
    """They count where this thread heard none: TensorRT also reports from threads of its own."""
    words = Words()
    thread = threading.Thread(target=words.add, args=("ERROR", "theirs"))
    thread.start()
    thread.join()
    assert words.last() == "theirs"
    words.add("ERROR", "mine")
    assert words.last() == "mine"
    words.clear()
    assert words.last() == "theirs"


def test_one_logger_in_a_process(
    trt: FakeTensorRT, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = tensorrt_logger(trt)
    assert tensorrt_logger(trt) is logger
    with caplog.at_level(logging.DEBUG, logger="clipsam.tensorrt"):
        logger.log(Severity.ERROR, "it broke")
        logger.log(Severity.INFO, "it started")
    assert logger.words.last() == "it broke"
    assert [r.levelname for r in caplog.records] == ["DEBUG", "DEBUG"]
    assert capfd.readouterr().err == ""


def test_make_sidecar_fits(graph: Path) -> None:
    """The helper of these tests makes what the runtime reads."""
    plan = b"ftrt" + bytes(20) + bytes((10, 13, 3, 9))
    path = write_engine(graph.parent / "elsewhere", plan, make_sidecar(graph, plan))
    assert path.exists()
    assert make_sidecar(graph, plan).platform == this_platform()
    assert FAKE_BOX.misfit(make_sidecar(graph, plan)) is None
