"""The TensorRT backend's control flow, on stand-ins for NVIDIA's two libraries.

fake_tensorrt.py keeps the rules that NVIDIA documents and computes by onnxruntime on "device"
memory; fake_cuda.py runs what is queued only when it is waited for. So these tests show that
shapes, addresses, copies, captures and frees are right by those rules, that every failure becomes
an error with TensorRT's words and leaves nothing behind. They show nothing of TensorRT's numbers
or speed. tests/runtime/backends/test_session.py has the contract, for these
stand-ins and for a GPU.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import LARGEST, SCRATCH, FakeTensorRT
from support.session_graph import INPUTS, OUTPUTS, feeds, make_graph
from support.session_results import right, scenario
from support.trt_engines import FAKE_BOX, fake_box, make_sidecar, write_fake_engine

from clipsam.runtime import SessionError
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.backends.trt.engine_store import Box, write_engine
from clipsam.runtime.backends.trt.session import SHAPES_KEPT, TrtSession
from clipsam.runtime.backends.trt.sidecar import this_platform


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


def test_outputs_that_nobody_asked_for_are_not_copied(graph: Path, cuda: FakeCuda) -> None:
    with open_session(graph, "tensorrt") as session:
        session.run(feeds())
        copies = []
        for wanted in (None, ["product"]):
            before = cuda.count("cudaMemcpyAsync")
            session.run(feeds(), wanted)
            copies.append(cuda.count("cudaMemcpyAsync") - before)
        assert copies == [len(INPUTS) + len(OUTPUTS), len(INPUTS) + 1]


def test_what_stays_on_the_device_is_never_copied_and_freed_with_it(
    graph: Path, cuda: FakeCuda
) -> None:
    with open_session(graph, "tensorrt") as session:
        fed = feeds(3, 3)
        expected = session.run(fed)
        taken, before = len(cuda.blocks["device"]), cuda.count("cudaMemcpyAsync")
        kept = session.keep(fed, ["same"])
        assert cuda.count("cudaMemcpyAsync") - before == len(INPUTS) + 1  # one within the device
        assert len(cuda.blocks["device"]) == taken + 1
        host = [cuda.blocks["host"], len(cuda.blocks["host"])]
        found = session.run({**fed, "left": kept["same"]})
        assert right(found, fed)
        assert host[1] == len(cuda.blocks["host"])
        np.testing.assert_array_equal(kept["same"].fetch(), expected["same"])
        del kept
        gc.collect()
        assert len(cuda.blocks["device"]) == taken
        late = session.keep(fed, ["same"])["same"]
    with pytest.raises(SessionError, match="is closed"):
        late.fetch()
    del late
    gc.collect()
    assert cuda.held() == {}


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


def test_tensorrt_11_is_the_same(graph: Path, tmp_path: Path) -> None:
    path = make_graph(tmp_path)
    write_fake_engine(path, Box("11.4.0.106", (8, 9), "Fake GPU"))
    with fake_box(version="11.4.0.106") as (cuda, _):
        scenario(path)
        assert cuda.held() == {}


def test_the_helpers_sidecar_fits_its_box(graph: Path) -> None:
    """The helper of these tests makes what the runtime reads."""
    plan = b"ftrt" + bytes(20) + bytes((10, 13, 3, 9))
    path = write_engine(graph.parent / "elsewhere", plan, make_sidecar(graph, plan))
    assert path.exists()
    assert make_sidecar(graph, plan).platform == this_platform()
    assert FAKE_BOX.misfit(make_sidecar(graph, plan)) is None
