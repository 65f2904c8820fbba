"""`clipsam label`: keep what a person said about a part, for the next calibration.

`clipsam calibrate --store` learns from it. A part with a label is never pruned.
"""

from __future__ import annotations

import argparse
import getpass
import re
from collections.abc import Sequence
from pathlib import Path

from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.station.part import LABELS, Part
from clipsam.runtime.station.store import Store

_RANGE = re.compile(r"(\d{1,18})-(\d{1,18})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    args = _parser().parse_args(argv)
    label = None if args.label == "none" else args.label
    with Store(args.store) as store:
        chosen = [part for text in args.part for part in _find(store, text)]
        with store.transaction():  # all or none
            for part in chosen:
                store.label(part.id, label, args.by or _user())
    for part in chosen:
        print(f"part {part.id} ({part.name}, {part.verdict or 'not judged yet'}): {args.label}")
    gone = sum(label is not None and part.filed and part.picture is None for part in chosen)
    if gone:
        print(f"note: of {gone} of them no picture was kept, so a calibration cannot use them.")
    return 0


def _find(store: Store, text: str) -> list[Part]:
    """The part that a text names, or all of a range of ids. Raises OptionError."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return [store.find(text)]
    parts = list(store.parts("id BETWEEN ? AND ?", (int(found[1]), int(found[2]))))
    if not parts:
        raise OptionError(f"{store.path} has no part with an id from {found[1]} to {found[2]}.")
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam label", __doc__)
    parser.add_argument("store", type=Path, help="e.g. line.db")
    parser.add_argument(
        "part", nargs="+", help="its id, serial number or name; a range of ids such as 1-60"
    )
    parser.add_argument("label", choices=(*LABELS, "none"), help="none takes a label back")
    parser.add_argument("--by", help="who says so (default: the user's name)")
    return parser


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        return None
