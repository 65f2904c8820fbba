"""int8 for CPUs: the convolutions of a graph in 8-bit integers, with ranges taken beforehand.

Activations are uint8, one scale and zero point a tensor; weights are symmetric, one scale an
output channel, and have 7 bits, so that no CPU saturates in silence (see `dynamic_int8.py`).
All of it is known before the first picture, so images of a batch do not touch each other. Plain
ONNX operators (`QLinearConv`), which ONNX Runtime runs channels last, on AMX and VNNI.

What comes out of a convolution is rounded too, and its channels are not alike: with one scale for
all of them the map of `tiny` was off by 5 % of its mean, without this rounding by 1 %. Most of its
convolutions go into an instance norm, which takes a channel's mean off and divides by its spread:
any scale and shift of a channel cancel. There each channel fills all of the 256 steps, and the
steps themselves go into the norm; the map is off by 2 %.

Left in float32: the first convolution (three channels of raw pixels), 1 x 1 ones (a product of few
terms gains little, and `tiny`'s, into its tokens, lost more than all others after it together),
grouped ones, and all else. So does SAM's encoder: of `tiny`'s, masks overlapped with float32's by
0.957, where 0.98 is needed; and most parts never meet it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from clipsam.export.graphs.onnx_export import save_graph
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.precisions.recipes import GraphRefusedError
from clipsam.export.quantization.conv_layer import (
    Range,
    int8_constants,
    int8_nodes,
    uint8_range,
)
from clipsam.runtime.backends.base import open_session

MIN_CHANNELS = 16  # into a convolution
MIN_SHARE = 0.5  # of the multiplications with weights; with fewer in int8 it is not worth a file

_IMAGES, _NOISE = 32, 2  # that ranges are taken from, beside the user's
_METADATA = "clipsam.int8-conv"


@dataclass(frozen=True)
class Int8Convolutions:
    """What became of a graph.

    Attributes:
      int8: the convolutions by name; normed: those of them whose output only an instance norm sees.
      share: of the graph's multiplications with weights that are int8.
    """

    int8: Sequence[str]
    normed: Sequence[str]
    share: float


def make(
    source: GraphSource, precision: str, path: Path, opset: int, threads: int | None
) -> Iterator[None]:
    """Write the graph of `source` to `path`, from its float32 file; see `Recipe.module`."""
    base = path.with_name(f"{source.name}.onnx")
    # Whatever the user's parts are, a bundle is shown others, too. Noise reaches furthest: without
    # it a grainy picture is clipped (the map of noise was off by 5 % of its mean, with it by 4 %),
    # and maps of pictures were as near with it.
    images = chain(source.procedural(_IMAGES), source.noise(_NOISE), source.calibration())
    quantize(base, path, images, threads)
    yield


def quantize(
    base: Path,
    output: Path,
    images: Iterable[Mapping[str, NDArray[Any]]],
    threads: int | None = None,
) -> Int8Convolutions:
    """Write the float32 graph at `base` with int8 convolutions to `output`.

    `images` are feeds of the graph, from which ranges are taken. Raises GraphRefusedError where too
    little of the graph is convolutions.
    """
    model = onnx.load(base, load_external_data=False)
    nodes = _candidates(model)
    share = _share(model, nodes)
    if share < MIN_SHARE:
        raise GraphRefusedError(
            f"only {share:.0%} of the products of {base.stem} are convolutions that int8 is for, "
            "too little to gain anything"
        )
    tensors = [name for node in nodes for name in (node.input[0], node.output[0])]
    ranges = _ranges(base, dict.fromkeys(tensors), images, threads)
    model = onnx.load(base)
    normed = _normed(model, nodes)
    _rewrite(model, nodes, ranges, normed)
    result = Int8Convolutions([node.name for node in nodes], sorted(normed), share)
    model.metadata_props.add(key=_METADATA, value=json.dumps(asdict(result)))
    save_graph(model, output)
    return result


def read_record(path: Path) -> Int8Convolutions:
    """What `quantize` left on record in the graph at `path`."""
    metadata = onnx.load(path, load_external_data=False).metadata_props
    return Int8Convolutions(**json.loads(next(p.value for p in metadata if p.key == _METADATA)))


def _candidates(model: onnx.ModelProto) -> list[NodeProto]:
    """The convolutions that are to be int8, in the order of the graph."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1] not in weights:
            continue
        _, channels, *kernel = weights[node.input[1]]
        if channels >= MIN_CHANNELS and len(kernel) == 2 and max(kernel) > 1:
            found.append(node)
    return found


def _share(model: onnx.ModelProto, nodes: Sequence[NodeProto]) -> float:
    """Of all multiplications with constant weights, those of `nodes`; for a batch of one."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    shapes = {
        value.name: [axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    chosen = {node.name for node in nodes}
    total = ours = 0.0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in weights:
            continue
        made = float(np.prod(shapes.get(node.output[0], [1])))
        dims = weights[node.input[1]]
        # Every value of a convolution is a sum over its kernel, of a product over its rows.
        cost = made * float(np.prod(dims[1:] if node.op_type == "Conv" else dims[:-1]))
        total += cost
        ours += cost * (node.name in chosen)
    return ours / max(total, 1.0)


def _ranges(
    base: Path,
    tensors: Iterable[str],
    images: Iterable[Mapping[str, NDArray[Any]]],
    threads: int | None,
) -> dict[str, Range]:
    """The range of every channel of the tensors named [B,C,h,w], over all images.

    Taken inside the graph: a few numbers come out of it, not the activations.
    """
    model = onnx.load(base, load_external_data=False)
    model.graph.initializer.append(_constant("clipsam.plane", np.array([0, 2, 3])))
    outputs: dict[str, tuple[str, str]] = {}
    for name in tensors:
        outputs[name] = f"{name}.low", f"{name}.high"
        for operator, reduced in zip(("ReduceMin", "ReduceMax"), outputs[name], strict=True):
            model.graph.node.append(
                helper.make_node(operator, [name, "clipsam.plane"], [reduced], keepdims=0)
            )
            model.graph.output.append(
                helper.make_tensor_value_info(reduced, TensorProto.FLOAT, [None])
            )
    watched = base.with_name(f".{base.stem}.watched.onnx")
    onnx.save(model, watched)
    try:
        with open_session(watched, "cpu", threads) as session:
            seen = [session.run(feeds) for feeds in images]
    finally:
        watched.unlink()
    return {
        name: (
            np.min([found[low] for found in seen], axis=0),
            np.max([found[high] for found in seen], axis=0),
        )
        for name, (low, high) in outputs.items()
    }


def _normed(model: onnx.ModelProto, nodes: Iterable[NodeProto]) -> set[str]:
    """Those whose output goes into an instance norm and nowhere else.

    That is into a mean over its plane, not over its channels, and into what takes that off. Were a
    channel not divided by its spread in the end, it would be hundreds of times too large, and no
    check would be passed.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[str]] = defaultdict(list)
    axes: dict[str, set[int]] = defaultdict(set)  # over which means are taken
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node.op_type)
        if node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1] in constants:
            axes[node.input[0]] |= {*numpy_helper.to_array(constants[node.input[1]]).tolist()}
    ends, plane = ["ReduceMean", "Sub"], ({3}, {-1}, {2, 3}, {-2, -1})
    outputs = {node.name: node.output[0] for node in nodes}
    return {name for name, y in outputs.items() if sorted(users[y]) == ends and axes[y] in plane}


def _rewrite(
    model: onnx.ModelProto,
    nodes: Sequence[NodeProto],
    ranges: Mapping[str, Range],
    normed: set[str],
) -> None:
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    chosen = {node.name for node in nodes}
    steps: dict[str, np.float32] = {}  # of the tensors that are there in uint8
    constants: dict[str, Any] = {}
    rewritten: list[NodeProto] = []
    for node in graph.node:
        if node.name not in chosen:
            rewritten.append(node)
            continue
        x = node.input[0]
        if x not in steps:
            steps[x], zero = uint8_range(ranges[x])
            constants |= {f"{x}.step": steps[x], f"{x}.zero": zero}
            into = [x, f"{x}.step", f"{x}.zero"]
            rewritten.append(helper.make_node("QuantizeLinear", into, [f"{x}.uint8"]))
        kernel, *bias = (weights[name] for name in node.input[1:])
        made = int8_constants(
            kernel, sum(bias), steps[x], ranges[node.output[0]], normed=node.name in normed
        )
        constants |= {f"{node.name}.{key}": value for key, value in made.items()}
        rewritten += int8_nodes(node, normed=node.name in normed)
    del graph.node[:]
    graph.node.extend(rewritten)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(_constant(name, value) for name, value in constants.items())


def _constant(name: str, value: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)
