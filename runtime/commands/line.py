"""The flags of commands that stand beside a line: what it is judged by, and what is kept of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipsam.runtime.bundle import Bundle
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.commands.amounts import byte_count, days, share
from clipsam.runtime.station.pictures import Keep


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the calibration, or the word that there is none."""
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    add("--calibration", type=Path, help="a file of `clipsam calibrate`: its limit, its promise")
    add(
        "--uncalibrated",
        action="store_true",
        help="judge by the bundle's own limit, which promises nothing about your parts",
    )


def read_limits(args: argparse.Namespace) -> tuple[Bundle, Calibration | None]:
    """The bundle, whose files are not verified yet, and the calibration: what is missing is said
    before a store is made. Raises BundleError, CalibrationError."""
    bundle = Bundle.open(args.bundle, verify=False)
    return bundle, None if args.uncalibrated else Calibration.read(args.calibration)


def add_keeping(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what is kept of parts; returns the group, for more of it."""
    usual = Keep()
    group = parser.add_argument_group("pictures and rows of the store")
    add = group.add_argument
    add(
        "--keep-good",
        type=share,
        default=usual.good,
        metavar="SHARE",
        help="of good parts' pictures, e.g. 1%% (default: all); those of all other parts are kept",
    )
    add("--retain", type=days, metavar="TIME", help="remove parts without a label after e.g. 90d")
    add("--quota", type=byte_count, metavar="SIZE", help="of all kept pictures, e.g. 20GB")
    add(
        "--min-free",
        type=byte_count,
        default=usual.min_free,
        metavar="SIZE",
        help="with less free on the disk no picture is added "
        f"(default: {usual.min_free >> 20} MiB)",
    )
    return group


def read_keeping(args: argparse.Namespace, leave: bool = False) -> Keep:
    """What the flags say."""
    return Keep(args.keep_good, leave, args.retain, args.quota, args.min_free)
