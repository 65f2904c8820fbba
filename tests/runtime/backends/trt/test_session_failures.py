"""The TensorRT backend when a call of NVIDIA's libraries fails: one sentence, nothing kept.

By the stand-ins of test_session.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.fake_cuda import PROTOTYPES, FakeCuda
from support.fake_tensorrt import LARGEST, FakeTensorRT
from support.session_graph import feeds
from support.session_results import right, scenario
from support.trt_engines import fake_box

from clipsam.runtime import (
    ProviderError,
    SessionError,
)
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.backends.trt.session import TrtSession

IN_CAPTURE = {
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiateWithFlags",
    "cudaGraphDestroy",
}


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


def test_shapes_outside_the_profile_are_refused(graph: Path, cuda: FakeCuda) -> None:
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
    r"incompatible device\): build it on this box with `python -m clipsam\.export\.build_",
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


def test_an_engine_that_failed_can_be_closed(graph: Path, cuda: FakeCuda) -> None:
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


def test_opening_without_a_gpu_is_refused(graph: Path, cuda: FakeCuda) -> None:
    cuda.failing = {"cudaGetDeviceCount": 100}
    with pytest.raises(ProviderError, match="There is no NVIDIA GPU to run on"):
        open_session(graph, "tensorrt")
