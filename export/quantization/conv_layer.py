"""One convolution in static int8: its constants, and its nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

WEIGHT_LEVELS, STEPS = 63, 255

Vector = NDArray[np.float32]
Range = tuple[Vector, Vector]  # the least and the largest value of every channel


def int8_constants(
    kernel: NDArray[np.float32], bias: Any, step: np.float32, made: Range, *, normed: bool
) -> dict[str, NDArray[Any]]:
    """The constants of a `QLinearConv` in the order of its inputs.

    Args:
      kernel: [N,K,h,w]; bias: [N], or 0.
      step: of what is convolved.
      made: the range of the output.
      normed: whether a scale and a shift of a channel cancel after it.
    """
    reach = np.abs(kernel).max(axis=(1, 2, 3))
    # A channel that is next to nothing takes a scale that leaves its bias within 32 bits.
    own = np.maximum(reach, max(reach.max() / 4096, 1e-6)) / WEIGHT_LEVELS
    integers = np.round(kernel / own[:, None, None, None]).astype(np.int8)
    low, high = made
    if normed:  # every channel from 0 to 255, whatever that is in the graph's units
        out_step, zero = np.float32(1), np.uint8(0)
        unit = np.maximum(high - low, 1e-6) / STEPS
        own, bias = own / unit, (bias - low) / unit
    else:
        out_step, zero = uint8_range(made)
    return {
        "weights": integers,
        "scales": own.astype(np.float32),
        "zeros": np.zeros(len(own), np.int8),
        "step": np.asarray(out_step),
        "zero": np.asarray(zero),
        "bias": np.broadcast_to(np.round(bias / (step * own)), own.shape).astype(np.int32),
    }


def int8_nodes(node: NodeProto, *, normed: bool) -> list[NodeProto]:
    """The convolution `node` in integers, and back to float32."""
    x, y, own = node.input[0], node.output[0], node.name
    parts = [f"{own}.{key}" for key in ("weights", "scales", "zeros", "step", "zero", "bias")]
    into = [f"{x}.uint8", f"{x}.step", f"{x}.zero", *parts]
    convolved = helper.make_node("QLinearConv", into, [f"{y}.uint8"], name=own)
    convolved.attribute.extend(node.attribute)
    if normed:
        return [convolved, helper.make_node("Cast", [f"{y}.uint8"], [y], to=TensorProto.FLOAT)]
    back = [f"{y}.uint8", f"{own}.step", f"{own}.zero"]
    return [convolved, helper.make_node("DequantizeLinear", back, [y])]


def uint8_range(seen: Range) -> tuple[np.float32, np.uint8]:
    """Step and zero point of uint8; zero, with which pictures are padded, is one of the values."""
    low, high = min(float(seen[0].min()), 0.0), max(float(seen[1].max()), 0.0)
    step = max(high - low, 1e-6) / STEPS
    return np.float32(step), np.uint8(round(-low / step))
