"""`clipsam report`: one HTML file of a run or a line, and a contact sheet.

The file opens in any browser, without a network.

Exit codes: 0 written; 1 it could not be done; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.commands.parser import command_parser, number, whole_number
from clipsam.runtime.commands.progress import counted
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.plant.database import is_address
from clipsam.runtime.report.folder import read_folder
from clipsam.runtime.report.parts import Run, Usual
from clipsam.runtime.report.pictures import embed
from clipsam.runtime.report.plant import read_plant
from clipsam.runtime.report.sheet import SHEET_SUFFIXES, write_sheet
from clipsam.runtime.report.store import read_store
from clipsam.runtime.results.index import RESULTS

_PAGE_SUFFIXES = (".html", ".htm")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises OptionError, OutputError."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.output is None and args.sheet is None:
        parser.error("say what to write: -o report.html, --sheet sheet.jpg, or both")
    if args.output is not None and args.output.suffix.lower() not in _PAGE_SUFFIXES:
        parser.error(f"-o {args.output}: end its name in .html")  # -o line.db would be a disaster
    if args.sheet is not None and args.sheet.suffix.lower() not in SHEET_SUFFIXES:
        parser.error(f"--sheet {args.sheet}: end its name in {' or '.join(SHEET_SUFFIXES)}")
    for path in (args.output, args.sheet):
        if path is not None and path.is_dir():
            raise OptionError(f"{path} is a folder: name a file in it.")
    with _read(args) as run:
        if args.calibration is not None:
            run = replace(run, usual=_usual(args.calibration, run))
        if args.output is not None:
            _write_page(run, args.output, args.megabytes)
        if args.sheet is not None:
            shown = write_sheet(args.sheet, run, counted("pictures"))
            print(f"the {shown} worst of {len(run.parts)} parts: {args.sheet}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam report", __doc__)
    add = parser.add_argument
    add(
        "source",
        help="results folder of `clipsam inspect`, a station's store, or postgresql://user@host/database",
    )
    add("-o", "--output", type=Path, help="the HTML file to write")
    add("--sheet", type=Path, help="a picture to write, .jpg or .png, of the worst parts")
    add("--box", help="of a database: the parts of this box alone")
    add("--images", type=Path, help="folder of the pictures, if they are elsewhere by now")
    add("--calibration", type=Path, help="show the scores beside those of its good parts")
    add(
        "--last",
        type=whole_number(),
        default=20_000,
        help="parts, the newest ones (default: %(default)s)",
    )
    add(
        "--megabytes",
        type=number(0, 500),
        default=20,
        help="of pictures at most (default: %(default)s)",
    )
    return parser


def _read(args: argparse.Namespace) -> AbstractContextManager[Run]:
    if is_address(args.source):
        if args.images is not None:
            raise OptionError("--images is for a results folder: a database holds its pictures.")
        return read_plant(args.source, args.last, args.box)
    if args.box is not None:
        raise OptionError("--box is for a database: a store is of one box.")
    source = Path(args.source)
    if not source.exists():
        raise OptionError(f"{source} does not exist: give a results folder or a store.")
    if args.images is not None and not args.images.is_dir():
        raise OptionError(f"--images {args.images} is no folder: give the one of the pictures.")
    folder = source.parent if source.name == RESULTS else source
    if folder.is_dir():
        return nullcontext(read_folder(folder, args.last, args.images))
    if args.images is not None:
        raise OptionError("--images is for a results folder: a store knows where its pictures are.")
    return nullcontext(read_store(source, args.last))


def _usual(path: Path, run: Run) -> Usual:
    calibration = Calibration.read(path)
    if not calibration.good_scores:
        raise OptionError(f"{path} holds no scores of good parts: calibrate again.")
    if not any(part.ran.get("calibration") == calibration.id for part in run.parts):
        print(f"note: no part of {run.title} was judged with {path}.", file=sys.stderr)
    return Usual(calibration.good_scores, calibration.limit)


def _write_page(run: Run, output: Path, megabytes: float) -> None:
    from clipsam.runtime import __version__
    from clipsam.runtime.report.page import render

    pictures = embed(run.parts, int(megabytes * 1e6), counted("pictures"))
    page = render(run, pictures, time.time(), __version__).encode()
    write_bytes(output, page)
    print(
        f"{len(run.parts)} parts, {len(pictures)} with pictures, {len(page) / 1e6:.1f} MB: {output}"
    )
