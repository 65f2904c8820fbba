"""What the graph of session_graph.py must return, and one session's whole life."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import open_session
from clipsam.runtime.backends.trt.session import TrtSession
from support.session_graph import feeds


def right(found: dict[str, NDArray[Any]], fed: dict[str, NDArray[Any]]) -> bool:
    """Whether `found` is what tests/support/session_graph.py's graph makes of `fed`."""
    return (
        np.allclose(found["product"], fed["left"].T @ fed["right"], rtol=1e-4)
        and np.array_equal(found["brightness"], fed["picture"].astype(np.float32))
        and np.array_equal(found["same"], fed["left"])
    )


def scenario(graph: Path) -> TrtSession:
    """Open, run two shapes and one of them again, close; every result is right."""
    with open_session(graph, "tensorrt") as session:
        for n in (2, 3, 2):
            fed = feeds(n)
            assert right(session.run(fed), fed)
    assert isinstance(session, TrtSession)
    return session
