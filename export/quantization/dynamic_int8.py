"""int8 for CPUs: large MatMuls with int8 weights, their activations quantized as they come.

Weights are symmetric, one scale an output channel. Activations are uint8, one scale and zero point
a tensor, taken at run time from that very tensor (`DynamicQuantizeLinear`), so that no ranges need
to be known beforehand. Plain ONNX operators, which ONNX Runtime fuses into one kernel.

Which MatMuls stand it is measured on images. Transformers carry a few channels hundreds of times
as large as the others; with one scale for all of them nothing of the small ones is left. Then the
activations are divided channel by channel by what their weights are multiplied with (SmoothQuant,
Xiao et al. 2023): the same product, with ranges that are alike. Where that does not help either, as
with single tokens that are as large, the MatMul stays float32.

Weights have 7 bits. With 8, CPUs without VNNI instructions add two products in 16 bits and saturate
in silence; with 7 the sums fit, and every CPU returns the same integers as the one that judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from clipsam.export.graphs.onnx_export import save_graph
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.precisions.recipes import GraphRefusedError
from clipsam.export.quantization.activations import Activations, collect
from clipsam.export.quantization.dynamic_layer import Int8Layer, Vector, integers_of
from clipsam.export.quantization.static_int8 import MIN_CHANNELS, OPERATORS, product_error

ACTIVATION_LEVELS = 255
MIN_ROWS = 64  # smaller products gain nothing: the dialogues with the text
SMOOTHED_ABOVE = 0.03  # error of a MatMul for which smoothing is tried
# Errors allowed of a MatMul alone; the next is tried when the graph fails with the one before.
LAYER_ERRORS = (0.1, 0.05, 0.025)
# Weights beside the graph are opened with a copy less: of CLIP L/14 at 1.0 GB instead of 1.4.
INLINE_BYTES = 50_000_000
MIN_SHARE = 0.5  # of the multiplications; with fewer of them in int8 the graph is not worth it

_ROWS = 128  # of every image's activations
_QUIET = 0.01  # of the median range of a channel
_METADATA = "clipsam.int8-dynamic"


@dataclass(frozen=True)
class DynamicInt8:
    """What became of the MatMuls that could be int8: name -> error of the layer tried alone.

    Attributes:
      int8: as they are; smoothed: with their activations divided channel by channel.
      left_out: float32.
      limit: the error that was allowed of one.
      share: of the multiplications of them all that are int8.
    """

    int8: Mapping[str, float]
    smoothed: Mapping[str, float]
    left_out: Mapping[str, float]
    limit: float
    share: float


@dataclass(frozen=True)
class _Trial:
    """One MatMul tried alone: its error as it is, and by `divisors` [K] where that is less."""

    plain: float
    smoothed: float
    divisors: Vector | None
    multiplications: int

    @property
    def error(self) -> float:
        return min(self.plain, self.smoothed)


class DynamicQuantizer:
    """Measures the MatMuls of the float32 graph at `base` once, and writes it as often as needed.

    Weights that lie beside the graph, as those of large ones do, are read one at a time: no more of
    them is in memory than what is written.

    Args:
      images: feeds of the graph, on which the MatMuls are tried.
    """

    def __init__(
        self,
        base: Path,
        images: Iterable[Mapping[str, NDArray[Any]]],
        threads: int | None = None,
    ) -> None:
        self._base = base
        model = onnx.load(base, load_external_data=False)
        nodes = _candidates(model)
        inputs = {node.input[0]: None for node, _ in nodes.values()}
        seen = collect(base, inputs, images, threads, _ROWS)
        self._trials = {}
        for name, (node, tensor) in nodes.items():
            activations = seen[node.input[0]]
            if activations.height >= MIN_ROWS:
                self._trials[name] = _try(activations, self._weights(node, tensor))

    def limits(self) -> Iterator[float]:
        """Those of `LAYER_ERRORS` that leave different MatMuls in int8, the most first."""
        before: set[str] = set()
        for limit in LAYER_ERRORS:
            chosen = self._chosen(limit)
            if chosen != before or not before:
                yield limit
            before = chosen

    def write(self, output: Path, limit: float = LAYER_ERRORS[0]) -> DynamicInt8:
        """Write the graph to `output` with int8 wherever a MatMul is off by at most `limit`.

        Raises GraphRefusedError when that is too little to gain anything.
        """
        chosen = self._chosen(limit)
        every = sum(trial.multiplications for trial in self._trials.values())
        share = sum(self._trials[name].multiplications for name in chosen) / max(every, 1)
        if share < MIN_SHARE:
            raise GraphRefusedError(
                f"only {share:.0%} of the products of {self._base.stem} stand int8 (off by at most "
                f"{limit:.1%} each), too little to gain anything"
            )
        made: dict[str, dict[str, float]] = {"int8": {}, "smoothed": {}, "left_out": {}}
        for name, trial in self._trials.items():
            kind = "left_out" if name not in chosen else "int8"
            if kind == "int8" and trial.divisors is not None:
                kind = "smoothed"
            made[kind][name] = trial.error
        result = DynamicInt8(**made, limit=limit, share=share)
        model = self._rewritten(chosen)
        model.metadata_props.add(key=_METADATA, value=json.dumps(asdict(result)))
        save_graph(model, output, INLINE_BYTES)
        return result

    def _chosen(self, limit: float) -> set[str]:
        return {name for name, trial in self._trials.items() if trial.error <= limit}

    def _rewritten(self, chosen: Iterable[str]) -> onnx.ModelProto:
        model = onnx.load(self._base, load_external_data=False)
        graph, found = model.graph, _candidates(model)
        layers: dict[str, Int8Layer] = {}
        constants: list[TensorProto] = []
        for name in sorted(chosen):  # a set has another order in every process
            node, tensor = found[name]
            layers[name] = Int8Layer(
                node, self._weights(node, tensor), self._trials[name].divisors, constants
            )
        nodes: list[NodeProto] = []
        quantized: set[str] = set()  # tensors that are there in uint8
        for node in graph.node:
            nodes += layers[node.name].nodes(quantized) if node.name in layers else [node]
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        for tensor in kept:
            if uses_external_data(tensor):
                load_external_data_for_tensor(tensor, str(self._base.parent))
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
        del graph.initializer[:]
        graph.initializer.extend([*kept, *constants])
        return model

    def _weights(self, node: NodeProto, tensor: TensorProto) -> NDArray[np.float32]:
        values = numpy_helper.to_array(tensor, str(self._base.parent))
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return np.asarray(values.T if transposed else values, np.float32)


def make(
    source: GraphSource, precision: str, path: Path, opset: int, threads: int | None
) -> Iterator[None]:
    """Write the graph of `source` to `path`, from its float32 file beside it; see `Recipe.module`.

    Errors of MatMuls that are small alone add up: every attempt leaves fewer of them int8. Raises
    GraphRefusedError when too few are left.
    """
    quantizer = DynamicQuantizer(path.with_name(f"{source.name}.onnx"), source.trial(), threads)
    for limit in quantizer.limits():
        quantizer.write(path, limit)
        yield


def read_record(path: Path) -> DynamicInt8:
    """What `DynamicQuantizer.write` left on record in the graph at `path`."""
    metadata = onnx.load(path, load_external_data=False).metadata_props
    return DynamicInt8(**json.loads(next(p.value for p in metadata if p.key == _METADATA)))


def dynamic_error(
    seen: Activations, weights: NDArray[np.float32], divisors: Vector | None = None
) -> float:
    """Error of `activations @ weights` in int8, relative to how its output varies.

    Args:
      seen: rows of activations [r,K], and the range of the tensor that each is of.
      weights: [K,N].
      divisors: [K], what the activations are divided by, and the weights multiplied with.
    """
    by = np.ones(len(weights), np.float32) if divisors is None else divisors
    lows = np.array([min(0.0, (low / by).min()) for low in seen.lows])
    highs = np.array([max(0.0, (high / by).max()) for high in seen.highs])
    steps = np.maximum(highs - lows, 1e-30) / ACTIVATION_LEVELS
    step, low = (values[seen.image, None] for values in (steps, lows))
    zero = np.round(-low / step)
    levels = np.clip(np.round(seen.rows / by / step) + zero, 0, ACTIVATION_LEVELS)
    rounded = ((levels - zero) * step).astype(np.float32)
    scaled = weights * by[:, None]
    integers, scales = integers_of(scaled)
    return product_error(seen.rows, weights, rounded, integers * scales)


def _try(seen: Activations, weights: NDArray[np.float32]) -> _Trial:
    multiplications = seen.height * weights.size
    plain = dynamic_error(seen, weights)
    if plain <= SMOOTHED_ABOVE:
        return _Trial(plain, plain, None, multiplications)
    divisors = smoothing(seen, weights)
    smoothed = dynamic_error(seen, weights, divisors)
    better = smoothed < plain
    return _Trial(plain, smoothed, divisors if better else None, multiplications)


def smoothing(seen: Activations, weights: NDArray[np.float32]) -> Vector:
    """Divisors [K] that leave channels of activations and rows of weights with alike ranges.

    The square root of the quotient of both ranges, and 1 in the geometric mean. A channel that was
    as good as silent on the images seen may speak on others, so it is taken for a quiet one.
    """
    lows, highs = np.min(seen.lows, axis=0), np.max(seen.highs, axis=0)
    largest = _at_least_quiet(np.maximum(-lows, highs))
    opposite = _at_least_quiet(np.abs(weights).max(axis=1))
    found = np.sqrt(largest / opposite)
    return np.asarray(found / np.exp(np.log(found).mean()), np.float32)


def _at_least_quiet(ranges: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(ranges, max(_QUIET * float(np.median(ranges)), 1e-12))


def _candidates(model: onnx.ModelProto) -> dict[str, tuple[NodeProto, TensorProto]]:
    """MatMuls and Gemms by name, with their weights, where these are a constant matrix.

    Constants of three axes are SAM's relative positions and UMCI's pooling, not weights.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        tensor = constants.get(node.input[1]) if node.op_type in OPERATORS else None
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != TensorProto.FLOAT:
            continue
        if min(tensor.dims) < MIN_CHANNELS or node.input[0] in constants:
            continue
        plain = {"transB": (0, 1), "transA": (0,), "alpha": (1.0,), "beta": (1.0,)}
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if all(value in plain[name] for name, value in values.items()):
            found[node.name] = (node, tensor)
    return found
