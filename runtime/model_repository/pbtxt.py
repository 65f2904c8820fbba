"""Protocol buffers' text format, as much of it as a `config.pbtxt` needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence


class Word(str):
    """A value that stands without quotes, such as `TYPE_FP32`."""


Value = str | int | bool | Mapping[str, "Value"] | Sequence["Value"]


def write(message: Mapping[str, Value]) -> str:
    """The text of a message: field -> value; a sequence repeats the field, a mapping nests."""
    return "\n".join(_fields(message, "")) + "\n"


def _fields(message: Mapping[str, Value], indent: str) -> Iterator[str]:
    for name, value in message.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        for one in value if several else [value]:  # type: ignore[union-attr]
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _fields(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
