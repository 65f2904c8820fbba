"""`clipsam inspect`: inspect image files and folders with a bundle.

For every image, under its relative path: NAME.overlay.png, NAME.mask.png (0/255), NAME.score.tiff
(float32), as --save says, and a line in results.jsonl.

Exit codes: 0 every image is good or anomalous; 1 it could not be done, or an engine failed on some
images; 2 wrong usage; 3 some images are not judged (unreadable, black, ...: each is named in
results.jsonl, files that cannot be read on stderr, too); 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from clipsam.runtime.commands.engine import add_engine, open_model
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.commands.progress import counting
from clipsam.runtime.commands.sensitivity import add_options, positive, read_options
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.core.log import log_to_stderr
from clipsam.runtime.folder import Counts, find_jobs, inspect_files
from clipsam.runtime.results.names import EVERYTHING, Save
from clipsam.runtime.stages.fusion import NORMS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError, see `inspect_files`."""
    args = _parser().parse_args(argv)
    try:
        with log_to_stderr(logging.INFO if args.verbose else logging.WARNING):
            counts = _inspect(args)
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from here.", file=sys.stderr)
        return 130
    print(
        str(counts)
        + (f", {counts.skipped} done before" if counts.skipped else "")
        + f"; results in {args.output}"
    )
    return counts.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam inspect", __doc__)
    add = parser.add_argument
    add("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    add("images", type=Path, nargs="+", help="image files or folders")
    add(
        "--category",
        help='what the part is, e.g. "metal nut" (default: the calibration\'s, else "object")',
    )
    add("--calibration", type=Path, help="a file of `clipsam calibrate`: its limit, its promise")
    add("--output", type=Path, required=True, help="folder for the results")
    add("--norm", choices=NORMS, help="scale of the score map (default: the bundle's, fixed)")
    add(
        "--deadline-ms",
        type=positive,
        help="answer with the rough map when SAM would take longer than this in all",
    )
    add_options(parser)
    add_engine(parser)
    add(
        "--save",
        type=_save,
        default=EVERYTHING,
        metavar="WHAT",
        help="files to write: none, or some of overlay,mask,score; with anomalous none of good "
        "parts (default: all)",
    )
    add(
        "--resume",
        action="store_true",
        help="skip images that results.jsonl already has, unchanged and with the same options",
    )
    add("--verbose", "-v", action="store_true", help="say what is opened, and what runs it")
    return parser


def _inspect(args: argparse.Namespace) -> Counts:
    jobs = find_jobs(args.images)
    options = read_options(args)
    with open_model(args, args.bundle, options, args.calibration) as model:
        if args.deadline_ms is not None:
            model.warm_up()
        return inspect_files(
            model,
            jobs,
            args.output,
            category=args.category,
            norm=args.norm,
            deadline_ms=args.deadline_ms,
            resume=args.resume,
            save=args.save,
            progress=counting(),
        )


def _save(text: str) -> Save:
    try:
        return Save.parse(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
