"""onnxruntime's memory on the CPU: one arena for all sessions, given back when they are closed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from support.toy_bundle import write_graph

from clipsam.runtime.backends.base import TensorSpec, open_session
from clipsam.runtime.backends.ort import memory as ort_memory

SIDE = 3072  # a run holds 38 MB

_CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from clipsam.runtime.backends.base import open_session

def resident():
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in l)
    return int(line.split()[1]) / 1024

path, found = Path(sys.argv[1]), []
x = np.ones((int(sys.argv[2]), 1), np.float32)
with open_session(path, "cpu", 1) as warm:
    warm.run({"x": x})
found.append(resident())
sessions = [open_session(path, "cpu", 1) for _ in range(4)]
for session in sessions:
    session.run({"x": x})
    found.append(resident())
sessions.pop(0).close()
found.append(resident())
y = sessions[0].run({"x": x})["y"]
for session in sessions:
    session.close()
found.append(resident())
print(json.dumps([found, float(y.min()), float(y.max())]))
"""


@pytest.fixture
def hungry(tmp_path: Path) -> Path:
    """y = the sums of rows of softmax(x x^T), all ones, for x float32 [n,1]."""
    path = tmp_path / "hungry.onnx"
    x, y = TensorSpec("x", "float32", ("n", 1)), TensorSpec("y", "float32", ("n", 1))
    nodes: list[Any] = [
        ("Transpose", ["x"], "row", {}),
        ("MatMul", ["x", "row"], "products", {}),
        ("Softmax", ["products"], "shares", {}),
        ("ReduceSum", ["shares", "last"], "y", {}),
    ]
    write_graph(path, (x,), (y,), nodes, {"last": np.array([1])})
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_arena_for_all_and_nothing_kept(hungry: Path) -> None:
    """Megabytes of a process whose four sessions run one after the other."""
    child = [sys.executable, "-c", _CHILD, str(hungry), str(SIDE)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    (before, first, *_, fourth, one_closed, all_closed), *sums = json.loads(done.stdout)
    np.testing.assert_allclose(sums, 1, rtol=1e-4)
    need = SIDE**2 * 4 / 2**20
    assert first - before > 0.9 * need  # so the closed one before has kept nothing
    assert fourth - first < 0.5 * need  # an arena of its own would have been `need` for each
    assert one_closed - before < 0.5 * need
    assert all_closed - before < 0.5 * need


def test_a_session_closes_while_others_run(hungry: Path) -> None:
    x, failed = np.ones((500, 1), np.float32), []

    def work() -> None:
        with open_session(hungry, "cpu", 1) as session:
            for _ in range(40):
                y = session.run({"x": x})["y"]
                failed.extend(y[np.abs(y - 1) > 1e-4])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with open_session(hungry, "cpu", 1) as session:
            session.run({"x": x})
    for thread in threads:
        thread.join()
    assert failed == []


def test_the_graph_that_is_run_for_its_end() -> None:
    model = onnx.load_from_string(ort_memory._IDENTITY)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


class Other(ModuleType):
    """onnxruntime that refuses an arena, or lacks one."""

    def __init__(self, lacks: str) -> None:
        super().__init__("onnxruntime")
        self.lacks = lacks

    def __getattr__(self, name: str) -> Any:
        if name == self.lacks:
            return self._fail
        return getattr(onnxruntime, name)

    def _fail(self, *_: object, **__: object) -> None:
        raise RuntimeError(f"{self.lacks} failed")


@pytest.fixture(params=["create_and_register_allocator", "InferenceSession", "RunOptions"])
def other(request: pytest.FixtureRequest) -> Other:
    return Other(request.param)


def test_an_onnxruntime_without_a_shared_arena_still_runs(other: Other) -> None:
    """Neither opening nor closing fails for it."""
    options = onnxruntime.SessionOptions()
    ort_memory.use_shared_arena(other, options)
    assert options.get_session_config_entry("session.use_env_allocators") == "1"
    ort_memory.give_back(other)
