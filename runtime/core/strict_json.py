"""JSON from a file that may be anybody's: nothing that two readers would read differently."""

from __future__ import annotations

import json
from typing import Any


def loads(data: bytes | str) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError, RecursionError.

    Refused besides what is not JSON: NaN and infinities, a key given twice, and escapes that spell
    halves of characters, which no file name or terminal takes.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    values = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    json.dumps(values, ensure_ascii=False).encode()
    return values


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON's")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key given twice, readers differ in which one they take."""
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return values
