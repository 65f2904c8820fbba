"""`clipsam label`: keep what a person said about a part, for the next calibration."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Sequence
from pathlib import Path

from clipsam.runtime.station.part import LABELS
from clipsam.runtime.station.store import Store


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    args = _parser().parse_args(argv)
    label = None if args.label == "none" else args.label
    with Store(args.store) as store:
        part = store.find(args.part)
        store.label(part.id, label, args.by or _user())
    print(f"part {part.id} ({part.name}, {part.verdict or 'not judged yet'}): {args.label}")
    if label is not None and part.filed and part.picture is None:
        print("note: its picture was not kept, so a calibration cannot use it.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipsam label",
        description="Keep what a person said about a part: `clipsam calibrate --store` learns from "
        "it. A part with a label is never pruned.",
    )
    parser.add_argument("store", type=Path, help="e.g. line.db")
    parser.add_argument("part", help="its id, serial number or name")
    parser.add_argument("label", choices=(*LABELS, "none"), help="none takes a label back")
    parser.add_argument("--by", help="who says so (default: the user's name)")
    return parser


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        return None
