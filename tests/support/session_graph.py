"""A small graph and what to feed it, for the tests of sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from clipsam.runtime.backends.base import TensorSpec
from support.toy_bundle import write_graph

# Free axes shared between inputs, a fixed axis, three dtypes, two outputs, one an input as it is.
INPUTS = (
    TensorSpec("left", "float32", ("n", 3)),
    TensorSpec("right", "float32", ("n", "k")),
    TensorSpec("picture", "uint8", (1, 4)),
)
OUTPUTS = (
    TensorSpec("product", "float32", (3, "k")),
    TensorSpec("brightness", "float32", (1, 4)),
    TensorSpec("same", "float32", ("n", 3)),
)


def make_graph(folder: Path, name: str = "small.onnx") -> Path:
    """Write the graph into `folder`: product = left^T right, brightness = picture, same = left."""
    nodes: list[Any] = [
        ("Transpose", ["left"], "turned", {"perm": [1, 0]}),
        ("MatMul", ["turned", "right"], "product", {}),
        ("Cast", ["picture"], "brightness", {"to": TensorProto.FLOAT}),
        ("Identity", ["left"], "same", {}),
    ]
    write_graph(folder / name, INPUTS, OUTPUTS, nodes, {})
    return folder / name


def feeds(n: int = 5, k: int = 2, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs with these sizes of the free axes."""
    draw = np.random.default_rng(seed)
    return {
        "left": draw.standard_normal((n, 3), np.float32),
        "right": draw.standard_normal((n, k), np.float32),
        "picture": draw.integers(0, 256, (1, 4), np.uint8),
    }
