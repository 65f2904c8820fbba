"""What flows into every MatMul, and for static int8 the scale that loses least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LEVELS = 127  # int8, symmetric: TensorRT takes no zero point
# A scale is half in a half graph. One below half's least normal number is no scale: onnxruntime's
# quantizer puts 1.0 in its place, which leaves nothing but zeros.
LEAST_STEP = 2.0**-14
LARGEST_HALF = 65504.0

ROWS = 256  # taken of every activation of an image; windows and tokens are alike
_KEPT_ROWS = 512  # for trying a layer out
_OCTAVES, _PER_OCTAVE = (-24, 17), 32  # of the histogram: 2^-24 to 2^17, half's range and more
_EDGES = 2.0 ** np.arange(_OCTAVES[0], _OCTAVES[1], 1 / _PER_OCTAVE)
_CENTRES = np.concatenate([[0.0], np.sqrt(_EDGES[:-1] * _EDGES[1:]), _EDGES[-1:]])
_SEARCHED = 6  # octaves below the largest value


@dataclass
class Activations:
    """What was seen of one tensor.

    Attributes:
      counts: a histogram of magnitudes.
      height: how many rows it has for one image.
      rows: some of them, float32 [r,K].
      image: int [r], the image that each of the rows is of.
      lows, highs: for every image the least and largest value of each channel, over all rows of
        the tensor, float32 [K].
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_EDGES) + 1, np.int64))
    height: int = 0
    rows: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    image: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    lows: list[NDArray[np.float32]] = field(default_factory=list)
    highs: list[NDArray[np.float32]] = field(default_factory=list)

    def add(
        self,
        rows: NDArray[np.float32],
        low: NDArray[np.float32] | None = None,
        high: NDArray[np.float32] | None = None,
    ) -> None:
        """Take in one image: rows [r,K], and the channels' range [K] where it is wider."""
        self.counts += np.bincount(
            np.digitize(np.abs(rows).ravel(), _EDGES), minlength=len(self.counts)
        )
        if len(self.rows) < _KEPT_ROWS:
            self.rows = np.concatenate([self.rows.reshape(-1, rows.shape[1]), rows])[:_KEPT_ROWS]
            self.image = np.append(self.image, np.full(len(rows), len(self.lows)))[:_KEPT_ROWS]
        self.lows.append(rows.min(axis=0) if low is None else low)
        self.highs.append(rows.max(axis=0) if high is None else high)

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
        best = float(_EDGES[lowest + int(np.argmin(losses))])
        return min(max(best, LEVELS * LEAST_STEP), LARGEST_HALF)


def collect(
    graph: Path,
    tensors: Iterable[str],
    images: Iterable[Mapping[str, NDArray[Any]]],
    threads: int | None = None,
    rows: int = ROWS,
) -> dict[str, Activations]:
    """What flows through the tensors named, over all `images` (feeds of the graph).

    The graph is float32, or emulated. A tensor [...,K] is seen as rows of K values, of which every
    n-th is taken inside the graph, about `rows` of them: enough for a histogram, and a few MB
    instead of the gigabytes that all activations of ViT-H take. The range of every channel is that
    of all rows.
    """
    watched = graph.with_name(f".{graph.stem.lstrip('.')}.watched.onnx")
    try:
        outputs = _watch(graph, tensors, watched, rows)
        seen = {name: Activations() for name in outputs}
        session = _session(watched, threads)
        names = [output.name for output in session.get_outputs()]
        for feeds in images:
            found = dict(zip(names, session.run(names, dict(feeds)), strict=True))
            for name, (step, output, low, high) in outputs.items():
                taken = found[output]
                seen[name].height = step * len(taken)
                taken = taken[:: max(1, len(taken) // rows)]  # more if its axis is free
                seen[name].add(taken, found[low], found[high])
        return seen
    finally:
        watched.unlink(missing_ok=True)


def _session(graph: Path, threads: int | None) -> Any:
    """onnxruntime with nothing held between runs: few runs, of graphs that take gigabytes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _watch(
    graph: Path, tensors: Iterable[str], watched: Path, wanted: int
) -> dict[str, tuple[int, str, str, str]]:
    """Write the graph with further outputs; tensor name -> one row in how many, and the names of
    these rows [r,K], the channels' least and largest values [K]."""
    model = onnx.load(graph, load_external_data=False)
    shapes = _shapes(model)
    outputs = {}
    for name in tensors:
        *before, width = shapes[name]
        step = max(1, int(np.prod([size for size in before if size])) // wanted)
        output, flat = f"{name}__rows", f"{name}__flat"
        constants = {
            f"{output}_shape": [-1, width],
            f"{output}_start": [0],
            f"{output}_end": [2**31],
            f"{output}_axis": [0],
            f"{output}_step": [step],
        }
        for constant, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.array(value), constant))
        shape, *window = constants
        model.graph.node.append(helper.make_node("Reshape", [name, shape], [flat]))
        model.graph.node.append(helper.make_node("Slice", [flat, *window], [output]))
        low, high = f"{name}__low", f"{name}__high"
        for operator, reduced in (("ReduceMin", low), ("ReduceMax", high)):
            first = f"{output}_axis"  # the axis of the slice is that of the rows
            model.graph.node.append(
                helper.make_node(operator, [flat, first], [reduced], keepdims=0)
            )
        kinds: dict[str, list[str | int | None]] = {
            output: [None, width], low: [width], high: [width],
        }  # fmt: skip
        model.graph.output.extend(
            helper.make_tensor_value_info(made, TensorProto.FLOAT, kind)
            for made, kind in kinds.items()
        )
        outputs[name] = step, output, low, high
    onnx.save(model, watched)
    return outputs


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shape of every tensor, 0 for a free axis."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
