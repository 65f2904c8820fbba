"""What takes the place of one MatMul in dynamic int8: plain ONNX operators and their constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

WEIGHT_LEVELS = 64  # 2 x 255 x 64 < 2^15: two products fit where a CPU adds them in 16 bits

Vector = NDArray[np.float32]


def integers_of(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], Vector]:
    """[K,N] -> the same as integers, and the scale [N] of every column."""
    scales = np.maximum(np.abs(weights).max(axis=0), 1e-30) / WEIGHT_LEVELS
    return np.round(weights / scales).astype(np.int8), scales.astype(np.float32)


class Int8Layer:
    """What takes the place of one MatMul or Gemm; adds its constants to `constants`."""

    def __init__(
        self,
        node: NodeProto,
        weights: NDArray[np.float32],
        divisors: Vector | None,
        constants: list[TensorProto],
    ) -> None:
        self._node, self._name, self._smoothed = node, node.output[0], divisors is not None
        by = np.ones(len(weights), np.float32) if divisors is None else divisors
        integers, scales = integers_of(weights * by[:, None])
        values: dict[str, NDArray[Any]] = {
            "weights": integers,
            "weights_zero": np.zeros(len(scales), np.int8),
            "weights_scale": scales,
            **({"factors": 1 / by} if self._smoothed else {}),
        }
        for name, value in values.items():
            constants.append(numpy_helper.from_array(value, f"{self._name}__{name}"))

    def nodes(self, quantized: set[str]) -> list[NodeProto]:
        """The nodes in order; `quantized` are the tensors that earlier ones left in uint8."""
        name, source = self._name, self._node.input[0]
        made: list[NodeProto] = []

        def add(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
            label = f"{self._node.name}_{outputs[0].rpartition('__')[2]}"
            made.append(helper.make_node(operator, inputs, outputs, label, **attributes))

        if self._smoothed:
            add("Mul", [source, f"{name}__factors"], [f"{name}__smoothed"])
            source = f"{name}__smoothed"
        parts = [f"{source}__uint8", f"{source}__scale", f"{source}__zero"]
        if source not in quantized:
            quantized.add(source)
            add("DynamicQuantizeLinear", [source], parts)
        integers, scale, zero = parts
        product, bias = f"{name}__product", list(self._node.input[2:])
        # The order that ONNX Runtime knows how to fuse.
        weights = [f"{name}__weights", zero, f"{name}__weights_zero"]
        add("MatMulInteger", [integers, *weights], [f"{name}__int32"])
        add("Cast", [f"{name}__int32"], [f"{name}__float"], to=TensorProto.FLOAT)
        add("Mul", [scale, f"{name}__weights_scale"], [f"{name}__scales"])
        result = product if bias else name
        add("Mul", [f"{name}__float", f"{name}__scales"], [result])
        if bias:
            add("Add", [product, *bias], [name])
        return made
