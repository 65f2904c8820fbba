"""Answers to a machine: one JSON object a part.

A machine must take a missing answer for a reject: a part whose answer does not come in time was not
found good.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TextIO

from clipsam.runtime.station.part import Part

_FIELDS = (
    "id", "name", "serial", "taken_at", "judged_at", "verdict", "score", "limit", "reasons",
    "message", "category", "late",
)  # fmt: skip
_REGION = ("box", "area", "score", "kinds")


def answer_of(part: Part) -> dict[str, Any]:
    """What a machine is told of a part, in JSON's types; regions without their outlines."""
    values = part.to_dict()
    return {
        **{name: values[name] for name in _FIELDS},
        **{
            name: [{k: r[k] for k in _REGION if k in r} for r in values[name]]
            for name in ("regions", "ignored")
        },
    }


def json_lines(stream: TextIO) -> Callable[[Part], None]:
    """An answer for `Station` that writes a line a part, at once."""

    def answer(part: Part) -> None:
        stream.write(json.dumps(answer_of(part)) + "\n")
        stream.flush()

    return answer
