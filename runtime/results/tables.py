"""Rows as tables have them: numbers, strings and nothing; what has a structure as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its lists and dicts as JSON."""
    return {
        name: json.dumps(value) if isinstance(value, list | dict) else value
        for name, value in row.items()
    }


def arrow_schema(
    columns: Iterable[str],
    whole: Collection[str] = (),
    real: Collection[str] = (),
    truth: Collection[str] = (),
) -> Any:
    """pyarrow's schema of these columns: integers, floats, bools, else strings.

    Raises ImportError where pyarrow is missing.
    """
    import pyarrow

    kinds = [(whole, pyarrow.int64()), (real, pyarrow.float64()), (truth, pyarrow.bool_())]
    return pyarrow.schema(
        [
            (name, next((kind for names, kind in kinds if name in names), pyarrow.string()))
            for name in columns
        ]
    )
