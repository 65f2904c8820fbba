"""Arguments that the commands of `research` share: numbers within bounds, and a data set."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

from clipsam.research.data.layouts import LAYOUTS


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


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """The data set to work on, as `selection.select_items` takes it."""
    add = parser.add_argument
    add("dataset", help="a folder, `synthetic`, or `synthetic-fine`: small defects")
    add("--layout", choices=tuple(LAYOUTS), help="default: found by looking")
    add("--category", help="the prompts' word (default: the folder's name)")
    add("--each", type=whole_number(), help="only N images of each defect, evenly spread")
    add("--count", type=whole_number(), default=200, help="images of the synthetic set")
