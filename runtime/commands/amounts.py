"""Amounts with a unit on the command line: sizes, times, shares."""

from __future__ import annotations

import argparse
import math
import re

_SIZES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_TIMES = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_LONGEST = 100 * 365 * 86400.0  # seconds; dates and waits end somewhere


def byte_count(text: str) -> int:
    """`20GB` as bytes."""
    return int(_amount(text, _SIZES, 1e18, "a size such as 500MB or 20GB"))


def seconds(text: str) -> float:
    """`500ms` or `10s` as seconds."""
    return _amount(text, _TIMES, _LONGEST, "a time such as 500ms, 10s or 2h")


def days(text: str) -> float:
    """`90d` as days."""
    return _amount(text, _TIMES, _LONGEST, "a time such as 12h, 90d or 8w") / _TIMES["d"]


def share(text: str) -> float:
    """`1%` or `0.01`, from 0 to 1."""
    number = text.removesuffix("%")
    try:
        value = float(number) / (100 if number != text else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 1% or 0.01, at most 100%")
    return value


def _amount(text: str, units: dict[str, float], most: float, what: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    value = float(found[1]) * units.get(found[2], 0.0) if found else 0.0
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
