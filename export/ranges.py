"""Activation ranges for int8: from what flows into every MatMul, to the scale that loses least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clipsam.runtime.session import open_session

LEVELS = 127  # int8, symmetric: TensorRT takes no zero point

_ROWS = 256  # taken of every activation of an image; windows and tokens are alike
_KEPT_ROWS = 512  # for trying a layer out
_OCTAVES, _PER_OCTAVE = (-24, 17), 32  # of the histogram: 2^-24 to 2^17, half's range and more
_EDGES = 2.0 ** np.arange(_OCTAVES[0], _OCTAVES[1], 1 / _PER_OCTAVE)
_CENTRES = np.concatenate([[0.0], np.sqrt(_EDGES[:-1] * _EDGES[1:]), _EDGES[-1:]])
_SEARCHED = 6  # octaves below the largest value


@dataclass
class Activations:
    """What was seen of one tensor: a histogram of magnitudes, and some of its rows [r,K]."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) + 1, np.int64))
    rows: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def add(self, rows: NDArray[np.float32]) -> None:
        """Take in the rows of one image."""
        self.counts += np.bincount(
            np.digitize(np.abs(rows).ravel(), _EDGES), minlength=len(self.counts)
        )
        if len(self.rows) < _KEPT_ROWS:
            self.rows = np.concatenate([self.rows.reshape(-1, rows.shape[1]), rows])[:_KEPT_ROWS]

    def limit(self) -> float:
        """The magnitude at which to clip: where rounding and clipping together lose least.

        With the step s = limit / 127, rounding costs s^2 / 12 on every value below the limit, and
        clipping the square of what lies above it.
        """
        used = np.flatnonzero(self.counts[1:]) + 1  # bin i holds _EDGES[i - 1] to _EDGES[i]
        if not len(used):
            return 1.0  # nothing but zeros: any range will do
        top = min(int(used[-1]), len(_EDGES) - 1)
        lowest = max(top - _SEARCHED * _PER_OCTAVE, 0)
        losses = []
        for i in range(lowest, top + 1):
            above = np.square(_CENTRES[i + 1 :] - _EDGES[i]) @ self.counts[i + 1 :]
            losses.append(self.counts[: i + 1].sum() * (_EDGES[i] / LEVELS) ** 2 / 12 + above)
        return float(_EDGES[lowest + int(np.argmin(losses))])


def collect(
    graph: Path,
    tensors: Iterable[str],
    images: Iterable[Mapping[str, NDArray[Any]]],
    threads: int | None = None,
) -> dict[str, Activations]:
    """What flows through the tensors named, over all `images` (feeds of the graph).

    The graph is float32, or emulated. A tensor [...,K] is seen as rows of K values, of which every
    n-th is taken inside the graph: enough for a histogram, and a few MB instead of the gigabytes
    that all activations of ViT-H take.
    """
    watched = graph.with_name(f".{graph.stem.lstrip('.')}.watched.onnx")
    try:
        outputs = _watch(graph, tensors, watched)
        seen = {name: Activations() for name in outputs}
        with open_session(watched, "cpu", threads) as session:
            for feeds in images:
                found = session.run(feeds)
                for name, output in outputs.items():
                    seen[name].add(found[output])
        return seen
    finally:
        watched.unlink(missing_ok=True)


def _watch(graph: Path, tensors: Iterable[str], watched: Path) -> dict[str, str]:
    """Write the graph with further outputs, float32 [r,K]; tensor name -> output name."""
    model = onnx.load(graph, load_external_data=False)
    shapes = _shapes(model)
    outputs = {}
    for name in tensors:
        *before, width = shapes[name]
        rows = int(np.prod([size for size in before if size]))  # a free axis is 1 long here
        output, flat = f"{name}__rows", f"{name}__flat"
        constants = {
            f"{output}_shape": [-1, width],
            f"{output}_start": [0],
            f"{output}_end": [2**31],
            f"{output}_axis": [0],
            f"{output}_step": [max(1, rows // _ROWS)],
        }
        for constant, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(value), constant))
        shape, *window = constants
        model.graph.node.append(helper.make_node("Reshape", [name, shape], [flat]))
        model.graph.node.append(helper.make_node("Slice", [flat, *window], [output]))
        model.graph.output.append(
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["?", width])
        )
        outputs[name] = output
    onnx.save(model, watched)
    return outputs


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shape of every tensor, 0 for a free axis."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
