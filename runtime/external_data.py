"""Which files a graph reads besides its own: the `external_data` of every tensor in an ONNX file.

onnxruntime follows these names wherever they lead, so a bundle holds them against its manifest
before the graph is opened. The reader walks ONNX's protobuf without decoding any tensor.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# message -> field number -> the message in it, for all fields that can hold a tensor.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_KEY, _VALUE, _LOCATION = 1, 2, b"location"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 64  # messages within messages; protobuf itself stops at 100


def external_files(path: Path) -> set[str]:
    """The locations that the ONNX file at `path` names. Raises ValueError if it is no such file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {name.decode() for name in _locations(data, 0, len(data), "Model", 0)}


def _locations(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise ValueError("messages nested too deep")
    if kind == "Entry":
        fields = [(n, data[a:b] if b - a < 4096 else b"") for n, a, b in _split(data, start, end)]
        if any(number == _KEY and text == _LOCATION for number, text in fields):
            # Of a field given twice readers take the last: each of them has to be allowed.
            yield from (text for number, text in fields if number == _VALUE)
        return
    inner = _FIELDS[kind]
    for number, a, b in _split(data, start, end):
        if number in inner:
            yield from _locations(data, a, b, inner[number], depth + 1)


def _split(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of every field of bytes between `position` and `end`."""
    while position < end:
        tag, position = _varint(data, position, end)
        wire = tag & 7
        if wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        elif wire == _BYTES:
            length, position = _varint(data, position, end)
            if position + length <= end:
                yield tag >> 3, position, position + length
            position += length
        else:
            raise ValueError(f"unknown wire type {wire}")
    if position > end:
        raise ValueError("cut off")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
    raise ValueError("cut off")
