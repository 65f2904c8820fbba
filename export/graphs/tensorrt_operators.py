"""What TensorRT's ONNX parser documents of the operators that our graphs use, and what breaks it.

Source: `docs/operators.md` of NVIDIA's onnx-tensorrt, as of TensorRT 10.15 (opset 9 to 24). The
table holds the operators that the graphs rely on; a new one is reported until it was looked up.
This says what is documented. Whether an engine builds is for a machine with TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from clipsam.export.graphs.placement import opset_of

OPSET_RANGE = (9, 24)
TYPES = {"FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "INT8", "UINT8", "BOOL"}

_F = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_FI = _F | {"INT32", "INT64"}
_FIB = _FI | {"BOOL"}

# Operator -> types of its first input. Restrictions are in `_restrictions`.
SUPPORTED: dict[str, frozenset[str]] = {
    "Add": _FI, "Attention": _F, "AveragePool": _F, "Cast": _FIB | {"UINT8"}, "Clip": _F,
    "Concat": _FIB, "Conv": _F, "ConvTranspose": _F, "Cos": _F,
    "DequantizeLinear": frozenset({"INT8"}), "Div": _FI,
    "Einsum": _F, "Equal": _FI, "Expand": _FIB, "Floor": _F, "Gather": _FIB, "Gelu": _F, "Gemm": _F,
    "InstanceNormalization": _F, "LayerNormalization": _F, "Less": _FI, "MatMul": _F, "Mul": _FI,
    "Not": frozenset({"BOOL"}), "Pad": _FI, "Pow": _FI, "QuantizeLinear": _F, "ReduceL2": _FI,
    "ReduceMean": _FI, "ReduceSum": _FI, "Relu": _FI, "Reshape": _FIB, "Resize": _F, "Shape": _FIB,
    "Sigmoid": _F, "Sin": _F, "Slice": _FIB, "Softmax": _F, "Split": _FIB, "Sqrt": _F,
    "Squeeze": _FIB, "Sub": _FI, "Tanh": _F, "Transpose": _FIB, "Unsqueeze": _FIB,
}  # fmt: skip

_RESIZE: dict[str, set[Any]] = {
    "mode": {"nearest", "linear"},
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners",
    },
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
    "antialias": {0},
}  # fmt: skip


def unsupported(model: ModelProto) -> list[str]:
    """What of a model TensorRT's parser does not document, a phrase each; empty when all is."""
    found = [
        f"operators of {o.domain}" for o in model.opset_import if o.domain not in ("", "ai.onnx")
    ]
    opset = opset_of(model)
    if not OPSET_RANGE[0] <= opset <= OPSET_RANGE[1]:
        found.append(f"opset {opset}")
    found += [f"function {function.name}" for function in model.functions]

    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        found.append(str(error))
    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = {name: TensorProto.DataType.Name(t.data_type) for name, t in constants.items()}
    ranks = {name: len(tensor.dims) for name, tensor in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        types[value.name] = TensorProto.DataType.Name(tensor.elem_type)
        ranks[value.name] = len(tensor.shape.dim)
    found += [f"{name}: {kind}" for name, kind in types.items() if kind not in TYPES]
    for node in graph.node:
        if node.op_type not in SUPPORTED or node.domain not in ("", "ai.onnx"):
            found.append(f"{node.name}: operator {node.domain}{node.op_type}")
            continue
        kind = types.get(node.input[0], "unknown")
        if kind not in SUPPORTED[node.op_type]:
            found.append(f"{node.name}: {node.op_type} of {kind}")
        found += [f"{node.name}: {problem}" for problem in _restrictions(node, constants, ranks)]
    return found


def _restrictions(
    node: NodeProto, constants: Mapping[str, TensorProto], ranks: Mapping[str, int]
) -> Iterator[str]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    names = list(node.input)
    if node.op_type == "Resize":
        for name, allowed in _RESIZE.items():
            value = attributes.get(name, next(iter(allowed)))
            value = value.decode() if isinstance(value, bytes) else value
            if value not in allowed:
                yield f"Resize with {name} {value}"
    elif node.op_type == "Attention":
        if any(ranks.get(name) != 4 for name in names[:4]):
            yield "Attention on other than four axes"
        if any(names[4:]) or len(node.output) > 1:
            yield "Attention with past or present"
        if attributes.get("softcap") or attributes.get("qk_matmul_output_mode"):
            yield "Attention with softcap or qk_matmul_output_mode"
    elif node.op_type == "AveragePool" and len(attributes["kernel_shape"]) not in (2, 3):
        yield "AveragePool over other than two or three axes"
    elif node.op_type == "LayerNormalization" and len(node.output) > 1:
        yield "LayerNormalization with more than one output"
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        if names[1] not in constants:
            yield f"{node.op_type} with a scale that is not constant"
        if any(names[2:3]):
            zero = constants.get(names[2])
            if zero is None or uses_external_data(zero):
                yield f"{node.op_type} with a zero point that the file does not hold"
            elif numpy_helper.to_array(zero).any():
                yield f"{node.op_type} with a zero point"
    elif node.op_type.startswith("Reduce") or node.op_type in ("Squeeze", "Unsqueeze"):
        if len(names) > 1 and names[1] not in constants:
            yield f"{node.op_type} with axes that are not constant"
    elif node.op_type == "Einsum" and b"..." in attributes["equation"]:
        yield "Einsum with an ellipsis"
