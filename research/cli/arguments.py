"""Arguments that the commands of `research` share: numbers within bounds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole_number(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """For argparse: a whole number of at least `least`, and of at most `most` if given."""
    wanted = f"at least {least}" + ("" if most is None else f" and at most {most}")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {wanted}")
        return value

    return parse


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """For argparse: a finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            above = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} must be a number, {above}")
        return value

    return parse
