"""onnxruntime's sessions on the CPU: memory that is used again, and closing beside other runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.toy_bundle import write_graph

from clipsam.runtime.backends.base import TensorSpec, open_session

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
for _ in range(4):
    with open_session(path, "cpu", 1) as session:
        y = session.run({"x": x})["y"]
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
def test_sessions_one_after_another_use_the_same_memory(hungry: Path) -> None:
    child = [sys.executable, "-c", _CHILD, str(hungry), str(SIDE)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    (first, *_, fourth), *sums = json.loads(done.stdout)  # megabytes
    np.testing.assert_allclose(sums, 1, rtol=1e-4)
    assert fourth - first < 0.5 * SIDE**2 * 4 / 2**20  # of what one run holds


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
