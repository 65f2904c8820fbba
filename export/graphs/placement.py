"""Where ONNX Runtime would run each node of a graph with the CUDA provider, told from the file.

Two rules put nodes on the CPU. A node for which the provider has no kernel: a kernel that is
registered from one version of an operator on, without an end, serves that version alone, so that an
operator that ONNX revised later has none. And shape arithmetic: a node that reads what lies in
host memory already (the result of `Shape`, or of a node on the CPU), and beside it only graph
inputs and constants of at most 100 values, follows to the CPU, unless one of its inputs is half.

This is `GetCpuPreferredNodes` of onnxruntime and the kernels that its docs/OperatorKernels.md lists
(both as of spring 2026, `Pad` as of its pull request 27774), for the operators of our graphs. It
tells what a session would say; a session on a GPU has the last word (`runtime/backends/ort`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import prod

import onnx
from onnx import ModelProto, NodeProto, TensorProto

SMALL = 100  # values of a constant that may follow a node to the CPU

_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}

# Operator -> versions that CUDA has kernels for: (first, last), last None where it is left open.
_OPEN = {
    "Clip": 13, "Concat": 13, "ConvTranspose": 11, "Cos": 7, "Einsum": 12, "Equal": 13, "Erf": 13,
    "Exp": 13, "Expand": 13, "Floor": 13, "Gather": 13, "Gelu": 20, "Gemm": 13,
    "InstanceNormalization": 6, "LayerNormalization": 17, "Less": 13, "MatMul": 13, "Max": 13,
    "Min": 13, "Mod": 13, "Neg": 13, "Not": 1, "Pow": 15, "Range": 11, "ReduceL2": 18,
    "ReduceMean": 18, "ReduceSum": 13, "Reciprocal": 13, "Relu": 14, "Resize": 19, "Sigmoid": 13,
    "Sin": 7, "Size": 13, "Slice": 13, "Softmax": 13, "Split": 18, "Sqrt": 13, "Tanh": 13,
    "Tile": 13, "Where": 16, "Add": 14, "Sub": 14, "Mul": 14, "Div": 14, "Attention": 24,
}  # fmt: skip
_RANGES = {
    "Attention": ((23, 23),),
    "AveragePool": ((11, 18), (19, 21), (22, None)),
    "Cast": ((13, 18), (19, 20), (21, 22), (23, None)),
    "ConstantOfShape": ((9, 20), (21, 22), (23, None)),
    "Conv": ((11, 21), (22, None)),
    "DequantizeLinear": ((19, 20), (21, None)),
    "Pad": ((13, 25),),
    "QuantizeLinear": ((19, 20), (21, None)),
    "Reshape": ((14, 18), (19, 20), (21, 22), (23, None)),
    "Shape": ((15, 18), (19, 20), (21, 22), (23, None)),
    "Squeeze": ((13, 20), (21, 22), (23, None)),
    "Transpose": ((13, 20), (21, 22), (23, None)),
    "Unsqueeze": ((13, 20), (21, 22), (23, None)),
}
# Inputs that the CUDA kernel itself wants in host memory, so they move nothing.
_HOST_INPUTS = {
    "ConstantOfShape": {0}, "Expand": {1}, "Pad": {1, 2, 3}, "Range": {0, 1, 2}, "Reshape": {1},
    "Resize": {1, 2, 3}, "Slice": {1, 2, 3, 4}, "Split": {1}, "Squeeze": {1}, "Tile": {1},
    "Unsqueeze": {1},
}  # fmt: skip
_HOST_OUTPUTS = ("Shape", "Size")


@dataclass(frozen=True)
class OnCpu:
    """A node that would run on the CPU, and why."""

    node: str
    operator: str
    reason: str


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators that a model uses. Raises ValueError for none."""
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            return int(opset.version)
    raise ValueError("it names no opset")


def has_kernel(operator: str, opset: int) -> bool:
    """Whether CUDA has a kernel for an operator of ONNX as it is in this opset."""
    try:
        since = onnx.defs.get_schema(operator, opset).since_version
    except onnx.defs.SchemaError:  # ONNX itself has no such operator
        return False
    ranges = [*_RANGES.get(operator, ())]
    if operator in _OPEN:
        ranges.append((_OPEN[operator], None))
    return any(first == since if last is None else first <= since <= last for first, last in ranges)


def on_cpu(model: ModelProto) -> list[OnCpu]:
    """The nodes of a model that would be placed on the CPU, in the graph's order."""
    graph = model.graph
    opset = opset_of(model)
    nodes: list[NodeProto] = list(graph.node)
    types = _types(model)
    small = {t.name for t in graph.initializer if prod(t.dims) <= SMALL}
    free = small | {value.name for value in graph.input}
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    found: dict[int, str] = {}
    in_host: set[str] = set()
    queue: list[int] = []

    def to_host(node: NodeProto) -> None:
        in_host.update(node.output)
        for name in node.output:
            for reader in readers.get(name, ()):
                heapq.heappush(queue, reader)

    for index, node in enumerate(nodes):
        if node.domain not in ("", "ai.onnx") or not has_kernel(node.op_type, opset):
            found[index] = f"CUDA has no kernel of {node.op_type} of opset {opset}"
            to_host(node)
        elif node.op_type in _HOST_OUTPUTS:
            to_host(node)
    seen: set[int] = set()
    while queue:
        index = heapq.heappop(queue)
        node = nodes[index]
        if index in seen or index in found:
            continue
        seen.add(index)
        host = _HOST_INPUTS.get(node.op_type, set())
        names = [(i, name) for i, name in enumerate(node.input) if name]
        follows = all(
            types.get(name) not in _HALF and (name in free or (name in in_host and i not in host))
            for i, name in names
        )
        if follows:
            found[index] = "it reads what lies in host memory already"
            to_host(node)
    return [OnCpu(nodes[i].name, nodes[i].op_type, found[i]) for i in sorted(found)]


def _types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor that can be told."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types
