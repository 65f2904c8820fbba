"""int8: Q/DQ nodes at the MatMuls of CLIP and of SAM's encoder, for TensorRT.

Static and symmetric: per channel for the weights, per tensor for what they are multiplied with,
whose ranges come from the user's good images. Everything else stays as it is in the graph given,
which is the fp16 one: with float32 around them int8 products would gain little.

A MatMul is left out when int8 would spoil it, which is measured: it is tried on activations that
were seen, and its error compared with how much its output varies between tokens. Transformers
carry a few channels hundreds of times as large as the others; one scale for all of them leaves
nothing of the small ones, and random weights never show it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from clipsam.export.graphs.onnx_export import save_graph
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.parity.onnx_vs_torch import checkable
from clipsam.export.quantization.activations import LEAST_STEP, LEVELS, Activations, collect
from clipsam.runtime.core.errors import ExportError

MIN_CHANNELS = 32  # in and out; smaller products gain nothing: heads, text, pooling
MAX_LAYER_ERROR = 0.1  # of a MatMul, see `layer_error`
MIN_RANGE = 2 * LEVELS * LEAST_STEP  # from the least to the largest weight of a channel

OPERATORS = ("MatMul", "Gemm")

_METADATA = "clipsam.int8"


@dataclass(frozen=True)
class Quantized:
    """What became of the MatMuls that could be int8: name -> error of the layer tried alone."""

    int8: Mapping[str, float]
    left_out: Mapping[str, float]


def quantize(
    base: Path,
    output: Path,
    images: Callable[[], Iterable[Mapping[str, NDArray[Any]]]],
    precision: str = "fp16",
    threads: int | None = None,
) -> Quantized:
    """Write the graph at `base`, which is in `precision`, with int8 MatMuls to `output`.

    `images` gives the feeds that ranges are taken from. Raises ExportError when no MatMul stands
    int8.
    """
    model = onnx.load(base)
    weights = _candidates(model)
    with checkable(base, precision) as graph:
        inputs = {node.input[0]: None for node, _ in weights.values()}
        seen = collect(graph, inputs, images(), threads)
    errors = {
        name: layer_error(seen[node.input[0]], values) for name, (node, values) in weights.items()
    }
    result = Quantized(
        {name: error for name, error in errors.items() if error <= MAX_LAYER_ERROR},
        {name: error for name, error in errors.items() if error > MAX_LAYER_ERROR},
    )
    if not result.int8:
        raise ExportError(
            f"No MatMul of {base.stem} stands int8 (the best is off by "
            f"{min(errors.values(), default=np.nan):.0%}; {MAX_LAYER_ERROR:.0%} is allowed): leave "
            "out --precision int8, and use fp16 for this model."
        )
    tensors = {weights[name][0].input[0] for name in result.int8}
    limits = {tensor: seen[tensor].limit() for tensor in sorted(tensors)}
    quantized = _insert(model, list(result.int8), limits)
    quantized.metadata_props.add(key=_METADATA, value=json.dumps(asdict(result)))
    save_graph(quantized, output)
    return result


def make(
    source: GraphSource, precision: str, path: Path, opset: int, threads: int | None
) -> Iterator[None]:
    """Write the graph of `source` to `path`, from its fp16 file beside it; see `Recipe.module`."""
    base = path.with_name(f"{source.name}.fp16.onnx")
    quantize(base, path, source.calibration, "fp16", threads)
    yield


def read_record(path: Path) -> Quantized:
    """What `quantize` left on record in the graph at `path`."""
    metadata = onnx.load(path, load_external_data=False).metadata_props
    return Quantized(**json.loads(next(p.value for p in metadata if p.key == _METADATA)))


def layer_error(seen: Activations, weights: NDArray[np.float32]) -> float:
    """Error of `activations @ weights` in static int8, see `product_error`.

    Args:
      seen: rows of activations [r,K], and their range.
      weights: [K,N].
    """
    step = seen.limit() / LEVELS
    rounded = np.clip(np.round(seen.rows / step), -LEVELS, LEVELS) * step
    reach = np.maximum(np.abs(weights).max(axis=0), weights.min(axis=0).clip(max=0) + MIN_RANGE)
    steps = reach / LEVELS  # as the quantizer takes them
    return product_error(seen.rows, weights, rounded, np.round(weights / steps) * steps)


def product_error(
    rows: NDArray[np.float32],
    weights: NDArray[np.float32],
    rounded_rows: NDArray[Any],
    rounded_weights: NDArray[Any],
) -> float:
    """Error of `rounded_rows @ rounded_weights` relative to how `rows @ weights` varies.

    Root mean squares over channels, medians over tokens: a single token may be a thousand times
    as large as all the others, and would pass for the signal while they are lost. What tokens have
    in common does not count as signal, since it may be large and says nothing.
    """
    exact = rows @ weights
    error = rounded_rows @ rounded_weights - exact
    signal = exact - np.median(exact, axis=0)
    noise, power = (np.median(np.square(x).mean(axis=1)) for x in (error, signal))
    return float(np.sqrt(noise / max(float(power), 1e-24)))


def _candidates(model: onnx.ModelProto) -> dict[str, tuple[NodeProto, NDArray[np.float32]]]:
    """MatMuls by name, with their weights [K,N] where these are a constant matrix.

    Constants of three axes are SAM's relative positions and UMCI's pooling, not weights.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        tensor = constants.get(node.input[1]) if node.op_type in OPERATORS else None
        half = onnx.TensorProto.FLOAT16
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != half:
            continue  # float32 layers are those that were kept so
        if min(tensor.dims) < MIN_CHANNELS or node.input[0] in constants:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        values = numpy_helper.to_array(tensor).astype(np.float32)
        found[node.name] = (node, values.T if transposed else values)
    return found


def _insert(
    model: onnx.ModelProto, nodes: list[str], limits: Mapping[str, float]
) -> onnx.ModelProto:
    """`model` with Q/DQ at the inputs of `nodes`, by onnxruntime's quantizer."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    # Ranges have the dtype of the graph, so that its scales do.
    ranges = TensorsData(
        CalibrationMethod.MinMax,
        {name: (np.float16(-limit), np.float16(limit)) for name, limit in limits.items()},
    )
    with _quiet():
        quantizer = QDQQuantizer(
            model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=list(OPERATORS),
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "MatMulConstBOnly": True,
                "QuantizeBias": False,
                "MinimumRealRange": MIN_RANGE,  # or a channel of small weights becomes zeros
                "OpTypesToExcludeOutputQuantization": list(OPERATORS),
                "DedicatedQDQPair": True,  # TensorRT shares none between layers
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # it appends its nodes at the end
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs what it leaves out, which was decided here."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
