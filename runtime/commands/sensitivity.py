"""The flags of `InspectOptions`, the same on every command that inspects."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.options import Box, InspectOptions, parse_roi
from clipsam.runtime.stages.preprocess import ZOOMS
from clipsam.runtime.stages.tiles import check_tiles

_SET = 127  # a pixel of a mask is set above it


def add_options(parser: argparse.ArgumentParser, limit: bool = True) -> None:
    """Add the flags; without `limit` for a command that finds it."""
    group = parser.add_argument_group("how sensitive, and where")
    if limit:
        group.add_argument(
            "--limit",
            type=positive,
            metavar="SCORE",
            help="anomalous is what scores above it (default: the bundle's or the calibration's)",
        )
        group.add_argument(
            "--zoom",
            choices=ZOOMS,
            help="auto: SAM redraws defects of large pictures from crops around them, whole "
            "pictures are off (default: the bundle's)",
        )
    group.add_argument(
        "--min-area",
        type=positive,
        metavar="AREA",
        help="the smallest defect that counts, in pixels; in mm² with --mm-per-pixel",
    )
    group.add_argument("--mm-per-pixel", type=positive, metavar="MM")
    add_view(group)
    group.add_argument(
        "--tiles",
        type=_tiles,
        metavar="off|auto|NxM",
        help="also look closely, in N columns and M rows of overlapping windows: finds small "
        "defects in large pictures, for the time of as many looks (default: off)",
    )
    group.add_argument(
        "--look-for",
        action="append",
        default=[],
        metavar="WORDS",
        help='only these kinds of defects count, e.g. "crack, chip"; `clipsam info` lists the '
        'words, and "unknown" is one (default: whatever is found)',
    )
    group.add_argument(
        "--ignore-kind",
        action="append",
        default=[],
        metavar="WORDS",
        help='these are no defects, e.g. "printed text, scratch"',
    )


def add_view(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say what of a picture is looked at."""
    parser.add_argument(
        "--roi", type=_roi, metavar="X,Y,W,H", help="look only here; the rest is cropped away"
    )
    parser.add_argument(
        "--ignore",
        type=Path,
        metavar="MASK.png",
        help="of the images' size, white where nothing counts",
    )


def read_options(args: argparse.Namespace) -> InspectOptions:
    """What the flags say. Raises OptionError, and ImageError for a mask that cannot be read."""
    return replace(
        read_view(args),
        limit=getattr(args, "limit", None),
        min_area=args.min_area,
        mm_per_pixel=args.mm_per_pixel,
        tiles=args.tiles,
        zoom=getattr(args, "zoom", None),
        look_for=_words(args.look_for),
        ignore_kinds=_words(args.ignore_kind),
    )


def read_view(args: argparse.Namespace) -> InspectOptions:
    """What the flags of `add_view` say. Raises OptionError, ImageError."""
    ignore = None
    if args.ignore is not None:
        ignore = np.asarray(read_image(args.ignore).max(axis=2) > _SET)
        if ignore.all() or not ignore.any():
            what = "everything" if ignore.all() else "nothing"
            raise OptionError(f"--ignore {args.ignore} ignores {what}: paint white what to ignore.")
    return InspectOptions(roi=args.roi, ignore=ignore)


def _words(given: Sequence[str]) -> tuple[str, ...]:
    """Words and phrases, one an argument or several between commas. Raises OptionError for an
    argument without any, which would ask for nothing and get everything."""
    for text in given:
        if not text.strip(" ,"):
            raise OptionError(f"{text!r} names no kind of defect: give words between commas.")
    return tuple(word.strip() for text in given for word in text.split(",") if word.strip())


def _roi(text: str) -> Box:
    try:
        return parse_roi(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not x,y,width,height in pixels") from None


def _tiles(text: str) -> str:
    try:
        return check_tiles(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> float:
    """An argument's type: numbers above 0."""
    value = float(text)
    if not value > 0:  # nan, too
        raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
    return value
