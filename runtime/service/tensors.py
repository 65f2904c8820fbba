"""Tensors of the Open Inference Protocol (KServe v2), with the binary data extension.

A request is JSON; with the header `Inference-Header-Content-Length` the JSON is that long, and the
bytes of the inputs that say `binary_data_size` follow in their order. Answers are the same. Numbers
are little-endian and row-major; a BYTES element is its length as uint32, then the bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.strict_json import loads
from clipsam.runtime.service.problems import BAD_REQUEST, OPTION, Problem

HEADER = "Inference-Header-Content-Length"
_MOST_HEAD = 1 << 20  # bytes of JSON beside binary data
_TYPES = {"UINT8": "<u1", "FP32": "<f4", "BOOL": "|b1"}
_MOST_AXES, _MOST_SIDE = 8, 1 << 31


@dataclass(frozen=True)
class Input:
    """One input: `data` is bytes, or the list that JSON had."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | list[Any]

    def numbers(self) -> NDArray[np.uint8]:
        """Uint8 of `shape`. Raises Problem."""
        count = math.prod(self.shape)
        if isinstance(self.data, bytes):
            if len(self.data) != count:
                raise _wrong(f"{self.name} has {len(self.data)} bytes, its shape says {count}")
            return np.frombuffer(self.data, np.uint8).reshape(self.shape)
        try:
            array = np.array(self.data)
        except (ValueError, OverflowError):  # rows of unlike lengths
            raise _wrong(f"{self.name}: its data is no array") from None
        if array.dtype.kind not in "iu" or array.size != count:
            raise _wrong(f"{self.name}: its data is not {count} whole numbers")
        if array.size and not 0 <= array.min() <= array.max() <= 255:
            raise _wrong(f"{self.name} holds numbers that are not from 0 to 255")
        return array.astype(np.uint8).reshape(self.shape)

    def texts(self) -> list[bytes]:
        """The elements of a BYTES tensor. Raises Problem."""
        count = math.prod(self.shape)
        if isinstance(self.data, bytes):
            found = list(_elements(self.data, self.name))
        elif all(isinstance(one, str) for one in self.data):
            found = [one.encode() for one in self.data]
        else:
            raise _wrong(f"{self.name}: the elements of BYTES must be texts, or binary data")
        if len(found) != count:
            raise _wrong(f"{self.name} has {len(found)} elements, its shape says {count}")
        return found


@dataclass(frozen=True)
class InferRequest:
    """A request of `/infer`.

    Attributes:
      id: the client's word for it.
      inputs: by name.
      outputs: name -> whether as binary data; empty: all, as the model sees fit.
      parameters: of the request.
      binary: whether outputs that say nothing come as binary data.
    """

    id: str
    inputs: Mapping[str, Input]
    outputs: Mapping[str, bool]
    parameters: Mapping[str, Any]
    binary: bool


def parse_request(body: bytes, head_length: str | None) -> InferRequest:
    """The request in a body. Raises Problem."""
    length = len(body)
    if head_length is not None:
        if not head_length.isdecimal() or len(head_length) > 18 or int(head_length) > length:
            raise _wrong(f"{HEADER} is no number of bytes within the body")
        length = int(head_length)
        if length > _MOST_HEAD:
            raise _wrong("its JSON is over a mebibyte beside binary data")
    try:
        values = _object(loads(body[:length]), "the request")
        binary = _flag(_parameters(values), "binary_data_output")
        inputs, rest = {}, memoryview(body)[length:]
        for value in _objects(values, "inputs"):
            one, rest = _input(value, rest)
            if one.name in inputs:
                raise _wrong(f"the input {one.name} is given twice")
            inputs[one.name] = one
        outputs = {
            _text(value, "name"): _flag(_parameters(value), "binary_data", binary)
            for value in _objects(values, "outputs")
        }
    except (ValueError, RecursionError) as error:
        raise _wrong(f"its JSON cannot be read, {str(error)[:100]}") from error
    if rest:
        raise _wrong(f"{len(rest)} bytes follow that belong to no input")
    request_id = values.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > 200:
        raise _wrong("id must be a text of at most 200 letters")
    return InferRequest(request_id, inputs, outputs, _parameters(values), binary)


def write_answer(
    head: Mapping[str, Any], tensors: Sequence[tuple[str, str, Any, bool]]
) -> tuple[bytes, int | None]:
    """The body for outputs (name, datatype, values, whether binary), and the length of its JSON
    where binary data follows; values are an array, or a list of bytes for BYTES."""
    outputs, pieces = [], []
    for name, datatype, values, binary in tensors:
        shape = [len(values)] if datatype == "BYTES" else list(values.shape)
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if binary:
            if datatype == "BYTES":
                data = b"".join(struct.pack("<I", len(one)) + one for one in values)
            else:
                data = np.ascontiguousarray(values.astype(_TYPES[datatype])).tobytes()
            pieces.append(data)
            output["parameters"] = {"binary_data_size": len(data)}
        elif datatype == "BYTES":
            output["data"] = [one.decode() for one in values]
        else:
            output["data"] = values.reshape(-1).tolist()
        outputs.append(output)
    text = json.dumps({**head, "outputs": outputs}).encode()
    return b"".join([text, *pieces]), len(text) if pieces else None


def _input(value: dict[str, Any], rest: memoryview) -> tuple[Input, memoryview]:
    """One input, and the binary data that is left for those after it."""
    name, datatype = _text(value, "name"), _text(value, "datatype")
    shape = value.get("shape")
    if not isinstance(shape, list) or not 0 < len(shape) <= _MOST_AXES:
        raise _wrong(f"the shape of {name} must be a list of its axes")
    if not all(type(side) is int and 0 < side < _MOST_SIDE for side in shape):
        raise _wrong(f"every axis of {name} must be a number above 0")
    size = _parameters(value).get("binary_data_size")
    if size is None:
        data = value.get("data")
        if not isinstance(data, list):
            raise _wrong(f"{name} has neither data nor binary_data_size")
        return Input(name, datatype, tuple(shape), data), rest
    if type(size) is not int or not 0 <= size <= len(rest) or "data" in value:
        raise _wrong(f"binary_data_size of {name} does not fit the body")
    return Input(name, datatype, tuple(shape), bytes(rest[:size])), rest[size:]


def _elements(data: bytes, name: str) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise _wrong(f"{name} is cut off")
        (length,) = struct.unpack_from("<I", data, position)
        position += 4 + length
        if position > len(data):
            raise _wrong(f"{name} is cut off")
        yield data[position - length : position]


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(f"{what} must be a JSON object")
    return value


def _objects(values: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = values.get(name, [])
    if not isinstance(found, list) or len(found) > 16:
        raise _wrong(f"{name} must be a short list")
    return [_object(one, f"every one of {name}") for one in found]


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    return _object(values.get("parameters", {}), "parameters")


def _flag(parameters: dict[str, Any], name: str, usual: bool = False) -> bool:
    value = parameters.get(name, usual)
    if not isinstance(value, bool):
        raise _wrong(f"{name} must be true or false")
    return value


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        raise Problem(OPTION, f"Every input and output needs a {name}.")
    return value


def _wrong(what: str) -> Problem:
    return Problem(BAD_REQUEST, f"The request is not of the protocol: {what}.")
