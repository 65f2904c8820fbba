"""A stand-in for `triton_python_backend_utils`, which exists within Triton alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from numpy.typing import NDArray


@dataclass
class Tensor:
    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass
class TritonError:
    text: str

    def message(self) -> str:
        return self.text


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.array for tensor in output_tensors}
        self.error = error


@dataclass
class Request:
    inputs: list[Tensor]
    outputs: tuple[str, ...] = ("verdict", "score", "limit", "result", "score_map", "mask")
    said: dict[str, Any] = field(default_factory=dict)

    def requested_output_names(self) -> list[str]:
        return list(self.outputs)

    def parameters(self) -> str:
        return json.dumps(self.said) if self.said else ""


def stand_in() -> ModuleType:
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError = Tensor, TritonError
    module.InferenceResponse = InferenceResponse
    module.get_input_tensor_by_name = lambda request, name: next(
        (tensor for tensor in request.inputs if tensor.name == name), None
    )
    result: ModuleType = module
    return result
