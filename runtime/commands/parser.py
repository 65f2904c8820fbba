"""What the parsers of all commands have in common: help made of a docstring, and numbers."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any


def command_parser(prog: str | None, doc: str | None, **more: Any) -> argparse.ArgumentParser:
    """The parser of a program, whose `--help` is its module's docstring as it is written: the exit
    codes, which are its last paragraph, below the arguments, the rest above."""
    about, paragraph, codes = (doc or "").partition("\n\nExit code")
    return argparse.ArgumentParser(
        prog=prog,
        description=about,
        epilog=paragraph.strip() + codes,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )


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


def port(least: int = 1) -> Callable[[str], int]:
    """For argparse: a port of TCP."""
    return whole_number(least, 65535)


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
