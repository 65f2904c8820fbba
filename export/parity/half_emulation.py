"""What a half-precision graph computes, on a CPU: in float32, every result rounded to half.

onnxruntime's CPU provider has few kernels for fp16 and none for bf16. Where it has none it runs
float32 and **leaves out the rounding between two such operators**, even with its optimisations
off: a sum of squares that overflows in half comes out right, and a check on it proves nothing.
Here the rounding is put into the graph, as explicit casts, which onnxruntime keeps. That is how
tensor cores compute: products of halves, summed in float32, stored as half.

An emulated graph is for checking only. It takes and returns what the original does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from clipsam.runtime.core.errors import ExportError, first_line

HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Operators whose results are values they were given: there is nothing to round.
_MOVES = {
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Max", "Min", "Pad", "Relu", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
_DTYPE_ATTRIBUTES = {"DequantizeLinear": "output_dtype"}


def emulate(path: Path, output: Path, rounding: bool = True) -> None:
    """Write the graph at `path`, which holds half tensors, as a float32 graph that rounds.

    Without `rounding` nothing but the weights is half: what the same layers say in float32, by the
    same names, with which each of them can be compared. Weights stay half in the file (external
    data is referred to where it lies, so `output` must be in the folder of `path`). Raises
    ExportError if the type of a tensor cannot be told.
    """
    model = onnx.load(path, load_external_data=False)
    types = tensor_types(model)
    outputs = {value.name for value in model.graph.output}
    nodes: list[NodeProto] = []
    for weights in model.graph.initializer:
        if weights.data_type in HALF_TYPES:
            name = weights.name
            weights.name = f"{name}__half"
            nodes.append(_cast(weights.name, name, TensorProto.FLOAT))
    for node in model.graph.node:
        nodes += _rounded(node, types, outputs, rounding)
    del model.graph.node[:]
    del model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.save(model, output)


def _rounded(
    node: NodeProto, types: dict[str, int], outputs: Collection[str], rounding: bool
) -> Iterator[NodeProto]:
    """The node on float32 tensors, then a cast to half and back for each half it returned.

    What the graph returns as half, by a cast that nothing else reads, stays half.
    """
    halves = [name for name in node.output if _type(name, types) in HALF_TYPES]
    result = NodeProto()
    result.CopyFrom(node)
    for attribute in result.attribute:
        if attribute.name == _DTYPE_ATTRIBUTES.get(node.op_type) and attribute.i in HALF_TYPES:
            attribute.i = TensorProto.FLOAT
    # A cast or a constant is half already: it only has to come back.
    is_half = node.op_type in ("Cast", "Constant", "ConstantOfShape")
    if halves and is_half and node.output[0] in outputs:
        yield result
        return
    exact = not rounding and node.op_type not in ("Constant", "ConstantOfShape")
    if exact and node.op_type == "Cast" and halves:
        result.attribute[0].i = TensorProto.FLOAT
    if not halves or node.op_type in _MOVES or exact:
        yield result
        return
    half = _type(halves[0], types)
    for i, name in enumerate(node.output):
        if name in halves:
            result.output[i] = f"{name}__half" if is_half else f"{name}__float"
    yield result
    for name in halves:
        if not is_half:
            yield _cast(f"{name}__float", f"{name}__half", half)
        yield _cast(f"{name}__half", name, TensorProto.FLOAT)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], f"cast_{target}", to=to)


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor by name; on the way ONNX's own rules of types are checked."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"A graph breaks ONNX's rules ({first_line(error)}): use another --opset, or the "
            "library versions of the constraints file."
        ) from error
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def _type(name: str, types: dict[str, int]) -> int:
    if not name:  # an optional output that is not there
        return TensorProto.UNDEFINED
    if not types.get(name):
        raise ExportError(
            f"The type of the tensor {name} cannot be told, so its graph cannot be checked: use "
            "the library versions of the constraints file."
        )
    return types[name]
