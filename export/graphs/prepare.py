"""Graph `prepare`: CLIP's and SAM's inputs from a picture of any size, on the device.

A resize that filters is what TensorRT does not have; products of matrices are what a GPU is for. So
every pass gathers the samples of each group of outputs and multiplies them by the group's matrix
(`runtime/ops/resize_bands.py`), which the host makes and feeds. The graph holds no weights, and
nothing in it asks for a shape: outputs have fixed sizes, and what is free is kept (0) or left to be
found (-1).

SAM's picture is rounded after each pass, as Pillow does it, CLIP's after both, as OpenCV's area
resize. Written node by node, as there is no PyTorch module to export.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.ops.resize_bands import groups

_CONSTANTS: dict[str, NDArray[Any]] = {
    "half": np.array(0.5, np.float32),
    "black": np.array(0, np.float32),
    "white": np.array(255, np.float32),
    "lines": np.array([0, 0, -1], np.int64),
}


def inputs_of(clip_size: int, sam_size: int) -> list[TensorSpec]:
    """The picture, and for every resize and axis a group's samples and their weights."""
    found = [TensorSpec("image", "uint8", ("height", "width", 3))]
    for name, size in (("clip", clip_size), ("sam", sam_size)):
        count, each = groups(size)
        for axis in (f"{name}_columns", f"{name}_rows"):
            found.append(TensorSpec(axis, "int32", (count, f"{axis}_reach")))
            found.append(TensorSpec(f"{axis}_weights", "float32", (count, each, f"{axis}_reach")))
    return found


def write_prepare(path: Path, clip_size: int, sam_size: int, opset: int) -> None:
    """Write the graph to `path`, for CLIP's and SAM's inputs of these sides in pixels."""
    inputs = [_value(spec) for spec in inputs_of(clip_size, sam_size)]
    nodes = [
        helper.make_node("Cast", ["image"], ["levels"], "levels", to=TensorProto.FLOAT),
        _turned("levels", "turned"),  # [W,H,3]
    ]
    constants = dict(_CONSTANTS)
    for name, size in (("clip", clip_size), ("sam", sam_size)):
        constants[f"{name}_first"] = np.array([size, -1, 3], np.int64)
        constants[f"{name}_second"] = np.array([1, size, size, 3], np.int64)
        nodes += _resize(name, each_pass=name == "sam")
    outputs = [
        _value(TensorSpec(name, "uint8", (1, size, size, 3)))
        for name, size in (("clip", clip_size), ("sam", sam_size))
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "prepare", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", opset)]
    oldest = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=oldest)
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _resize(name: str, each_pass: bool) -> Iterator[NodeProto]:
    """The nodes from `turned` to the output called `name`; `each_pass` is rounded, or the last."""
    yield from _product("turned", f"{name}_columns", f"{name}_first")  # [S,H,3]
    narrow = f"{name}_columns_made"
    if each_pass:
        yield from _rounded(narrow)
        narrow += "_level"
    yield _turned(narrow, f"{name}_narrow")  # [H,S,3]
    yield from _product(f"{name}_narrow", f"{name}_rows", f"{name}_second")  # [1,S,S,3]
    made = f"{name}_rows_made"
    within = f"{made}_within"  # a cubic weight may be below zero
    yield helper.make_node("Clip", [made, "black", "white"], [within], within)
    yield from _rounded(within)
    yield helper.make_node("Cast", [f"{within}_level"], [name], name, to=TensorProto.UINT8)


def _product(source: str, axis: str, shape: str) -> Iterator[NodeProto]:
    """One pass along the first axis of `source` [old,X,3], its result called `axis`_made."""
    band, lines, product, made = (f"{axis}_{what}" for what in ("band", "lines", "product", "made"))
    yield helper.make_node("Gather", [source, axis], [band], band, axis=0)  # [G,K,X,3]
    yield helper.make_node("Reshape", [band, "lines"], [lines], lines)  # [G,K,3X]
    yield helper.make_node("MatMul", [f"{axis}_weights", lines], [product], product)  # [G,N,3X]
    yield helper.make_node("Reshape", [product, shape], [made], made)


def _rounded(name: str) -> Iterator[NodeProto]:
    """Halves go up, as in Pillow. `Round` takes them to the even number, and CUDA's provider has
    had no kernel for it from opset 22 on."""
    yield helper.make_node("Add", [name, "half"], [f"{name}_raised"], f"{name}_raised")
    yield helper.make_node("Floor", [f"{name}_raised"], [f"{name}_level"], f"{name}_level")


def _turned(source: str, target: str) -> NodeProto:
    return helper.make_node("Transpose", [source], [target], target, perm=[1, 0, 2])


def _value(spec: TensorSpec) -> ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, kind, spec.shape)
