"""`clipsam batch`: inspect any number of pictures, on all cores of one machine or on many.

With Ray. OUTPUT becomes a folder of Parquet files, a row a picture, with the fields of
`results.jsonl`.

Exit codes: 0 every picture is good or anomalous; 1 it could not be done, or an engine failed on
some pictures; 2 wrong usage; 3 some pictures are not judged (unreadable, black, ...: each has a row
that says why); 130 interrupted. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from clipsam.runtime.batch.pictures import Columns
from clipsam.runtime.batch.places import Place
from clipsam.runtime.batch.run import run_batch
from clipsam.runtime.batch.worker import Task
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.calibration.apply import word
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.commands.engine import add_graphs
from clipsam.runtime.commands.parser import command_parser, whole_number
from clipsam.runtime.commands.progress import counting
from clipsam.runtime.commands.sensitivity import add_options, read_options
from clipsam.runtime.core.log import log_to_stderr
from clipsam.runtime.opening import check_threads
from clipsam.runtime.options import calibrated
from clipsam.runtime.stages.fusion import NORMS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    args = _parser().parse_args(argv)
    try:
        with log_to_stderr(logging.INFO if args.verbose else logging.WARNING):
            counts = run_batch(
                _task(args),
                args.inputs,
                workers=args.workers,
                address=args.address,
                shard_size=args.shard_size,
                retry=args.retry,
                progress=counting(),
            )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    print(
        str(counts)
        + (f" ({counts.skipped} of them done before)" if counts.skipped else "")
        + f"; results in {args.output}"
    )
    return counts.exit_code


def _task(args: argparse.Namespace) -> Task:
    """What the workers are told; what can be refused without an engine is refused here."""
    check_threads(args.threads)
    options = read_options(args)
    bundle = Bundle.open(args.bundle, verify=False)
    calibration = None
    if args.calibration is not None:
        calibration = Calibration.read(args.calibration)
        calibration.check_made_for(bundle.id)
    options = calibrated(options, calibration)
    category = word(calibration, args.category)
    bundle.text(category)
    return Task(
        args.bundle.absolute(),
        bundle.id,
        args.provider,
        args.threads,
        args.precision,
        options,
        calibration,
        category,
        args.norm or bundle.manifest.fusion.norm,
        Place.of(args.output),
        Columns(args.image_column, args.id_column),
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam batch", __doc__)
    add = parser.add_argument
    add("bundle", type=Path, help="folder of a bundle, by the same path on every machine")
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="folders, pictures, Parquet files with a column of pictures, patterns in quotes "
        "('parts/**/*.png'); or any of these in an object store (s3://bucket/folder)",
    )
    add(
        "output", metavar="OUTPUT", help="a new folder, or one to go on with; or in an object store"
    )
    add(
        "--category",
        help='what the part is, e.g. "metal nut" (default: the calibration\'s, else "object")',
    )
    add("--calibration", type=Path, help="a file of `clipsam calibrate`: its limit, its promise")
    add("--norm", choices=NORMS, help="scale of the score map (default: the bundle's, fixed)")
    add_options(parser)
    group = parser.add_argument_group("what runs, and how the work is shared out")
    add_graphs(group)
    add = group.add_argument
    add(
        "--workers",
        type=whole_number(),
        metavar="N",
        help="default: as many as there are cores; on a GPU, one for each",
    )
    add(
        "--threads", type=whole_number(), default=1, metavar="N", help="of each worker (default: 1)"
    )
    add(
        "--address",
        metavar="HOST:PORT",
        help="a Ray cluster that is there, 'auto' for this machine's (default: start one here that "
        "ends with the command)",
    )
    add(
        "--shard-size",
        type=whole_number(),
        default=256,
        metavar="N",
        help="pictures of a file of results, and most that are done again when a machine dies "
        "(default: 256; a row group of Parquet is never parted)",
    )
    add(
        "--retry",
        action="store_true",
        help="also do again what holds pictures that could not be read or inspected",
    )
    group = parser.add_argument_group("of Parquet files")
    add = group.add_argument
    add("--image-column", metavar="NAME", help="of picture files' bytes (default: the only one)")
    add("--id-column", metavar="NAME", help="kept in the results' column `id`")
    parser.add_argument("--verbose", "-v", action="store_true", help="say what is done")
    return parser
