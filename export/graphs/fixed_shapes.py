"""A graph without shape arithmetic: nothing in it asks how large a tensor is.

The exporter spells a free axis as `Shape`, a few operators on its result, and a `Reshape`, `Expand`
or `Resize` that is told the answer. ONNX Runtime places such arithmetic on the CPU by design, which
a GPU then waits for, and TensorRT builds shape tensors of it. None of it is needed: the exporter
also notes every tensor's shape with its free axes by name, so `Reshape` can keep an axis (0) or
leave it to be found (-1), `Resize` can be told a scale, and what is expanded only to be added,
multiplied or divided broadcasts by itself. Values are the same bits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

_BROADCASTS = ("Add", "Sub", "Mul", "Div")

Shape = list[int | str]


def fix_shapes(model: ModelProto) -> None:
    """Take the shape arithmetic out of a model, in place, wherever its noted shapes allow it."""
    rewrite = _Rewrite(model)
    for node in list(model.graph.node):
        rewrite.node(node)
    rewrite.finish()


class _Rewrite:
    """One graph, who reads what in it, and what replaces what."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes: dict[str, Shape] = {t.name: list(t.dims) for t in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            if all(dims):
                self.shapes[value.name] = dims
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.before: dict[int, list[NodeProto]] = defaultdict(list)  # id of a node -> new nodes

    def node(self, node: NodeProto) -> None:
        """Rewrite one node where it is told a shape that is computed."""
        inputs = list(node.input)
        if node.op_type == "Reshape" and inputs[1] not in self.constants:
            self._reshape(node)
        elif node.op_type == "Resize" and len(inputs) > 3 and inputs[3] not in self.constants:
            self._resize(node)
        elif node.op_type == "Expand" and inputs[1] not in self.constants:
            self._expand(node)

    def finish(self) -> None:
        """Put new nodes in, and take out what nobody reads any more."""
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            nodes += [*self.before[id(node)], node]
        needed = {value.name for value in self.graph.output}
        kept = []
        for node in reversed(nodes):
            if needed & set(node.output):
                kept.append(node)
                needed.update(node.input)
        made = {name for node in kept for name in node.output}
        _replace(self.graph.node, reversed(kept))
        _replace(self.graph.value_info, [v for v in self.graph.value_info if v.name in made])
        weights = self.graph.initializer  # gigabytes: none is copied
        for index in reversed(range(len(weights))):
            if weights[index].name not in needed:
                del weights[index]
        there = {tensor.name for tensor in weights}
        weights.extend(t for name, t in self.constants.items() if name in needed - there)

    def _reshape(self, node: NodeProto) -> None:
        source = self._transposed(node)
        if source is not None:  # two reshapes around a transposition of the last two axes
            node.op_type = "Transpose"
            _replace(node.input, [source])
            _replace(node.attribute, [helper.make_attribute("perm", [0, 1, 3, 2])])
            return
        found, wanted = self.shapes.get(node.input[0]), self.shapes.get(node.output[0])
        if found is None or wanted is None:
            return
        sizes = [
            size if isinstance(size, int) else 0 if found[i : i + 1] == [size] else -1
            for i, size in enumerate(wanted)
        ]
        if sizes.count(-1) > 1:
            return
        node.input[1] = self._constant(np.array(sizes, np.int64))
        _replace(node.attribute, [a for a in node.attribute if a.name != "allowzero"])

    def _transposed(self, node: NodeProto) -> str | None:
        """What goes into Reshape [.,K,N], Transpose, Reshape [.,.,N,K], four axes in and out."""
        turn = self.makers.get(node.input[0])
        if turn is None or turn.op_type != "Transpose":
            return None
        first = self.makers.get(turn.input[0])
        if first is None or first.op_type != "Reshape":
            return None
        perm = next(list(a.ints) for a in turn.attribute if a.name == "perm")
        source = first.input[0]
        if perm != [0, 2, 1] or len(self.shapes.get(source, ())) != 4:
            return None
        told = self.makers.get(node.input[1]), self.makers.get(first.input[1])
        # The exporter's way to transpose an attention's keys: both shapes are pieced together.
        return source if all(n is not None and n.op_type == "Concat" for n in told) else None

    def _resize(self, node: NodeProto) -> None:
        found, wanted = self.shapes.get(node.input[0]), self.shapes.get(node.output[0])
        if found is None or wanted is None:
            return
        scales = [
            1.0 if a == b else b / a if isinstance(a, int) and isinstance(b, int) else 0.0
            for a, b in zip(found, wanted, strict=True)
        ]
        exact = np.array(scales, np.float32)
        fits = all(
            a == b or int(np.floor(np.float32(a) * scale)) == b
            for a, b, scale in zip(found, wanted, exact, strict=True)
            if isinstance(a, int)
        )
        if exact.all() and fits:
            _replace(node.input, [*node.input[:2], self._constant(exact)])

    def _expand(self, node: NodeProto) -> None:
        source, target = node.input[0], node.output[0]
        wanted, readers = self.shapes.get(target), self.readers[target]
        outputs = {value.name for value in self.graph.output}
        if wanted is None or target in outputs:
            return
        if all(self._broadcasts(reader, target, wanted) for reader in readers):
            for reader in readers:
                _replace(reader.input, [source if n == target else n for n in reader.input])
        elif source in self.constants and len(readers) == 1 and readers[0].op_type == "Concat":
            self._repeat(node, wanted, readers[0])

    def _broadcasts(self, reader: NodeProto, name: str, shape: Shape) -> bool:
        """Whether a node makes the shape of its other operand, as it does without the Expand."""
        others = [other for other in reader.input if other != name]
        return (
            reader.op_type in _BROADCASTS
            and len(others) == 1
            and self.shapes.get(others[0]) == shape
        )

    def _repeat(self, node: NodeProto, wanted: Shape, concat: NodeProto) -> None:
        """A constant once for each of a batch: added to zeros made of what it is put beside."""
        free = [axis for axis, size in enumerate(wanted) if isinstance(size, str)]
        beside = next((other for other in concat.input if other != node.output[0]), "")
        shape = self.shapes.get(beside)
        if free != [0] or shape is None or shape[0] != wanted[0]:
            return
        kind = self.constants[node.input[0]].data_type
        zero = numpy_helper.from_array(np.zeros((), np.float32))
        if kind != onnx.TensorProto.FLOAT:
            zero = helper.make_tensor("", kind, [], [0.0])
        name = node.output[0]
        cut, zeros, each = f"{name}_cut", f"{name}_zeros", f"{name}_each"
        ones = [1] * (len(wanted) - 1)
        axes = list(range(1, len(wanted)))
        bounds = [self._constant(np.array(v, np.int64)) for v in ([0] * len(ones), ones, axes)]
        self.before[id(concat)] += [  # by then the neighbour is there
            helper.make_node("Slice", [beside, *bounds], [cut], cut),
            helper.make_node("Mul", [cut, self._tensor(zero)], [zeros], zeros),
            helper.make_node("Add", [node.input[0], zeros], [each], each),
        ]
        _replace(concat.input, [each if n == name else n for n in concat.input])

    def _constant(self, array: NDArray[np.generic]) -> str:
        return self._tensor(numpy_helper.from_array(array))

    def _tensor(self, tensor: onnx.TensorProto) -> str:
        """The name of a constant of the graph, the same for the same content."""
        content = numpy_helper.to_array(tensor).ravel().astype(np.float64)
        words = "_".join(f"{value:g}" for value in content).replace("-", "m").replace(".", "p")
        tensor.name = f"fixed_{tensor.data_type}_{len(tensor.dims)}_{words}"
        self.constants[tensor.name] = tensor
        return tensor.name


def _replace(field: object, values: Iterable[object]) -> None:
    """Give a repeated field of a protobuf message new content."""
    kept = list(values)
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]
