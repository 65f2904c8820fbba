"""`clipsam calibrate`: from pictures of good parts to a limit with a promise.

    clipsam calibrate bundles/tiny --good parts/good --category cookie --false-alarms 0.05 \\
        --output cookie.calibration

Give the provider and the precision that parts will be inspected with.

Beside the file: NAME.scores.png, the scores and the limit, and NAME.planted.png, defects drawn onto
the good parts with a green frame where the limit finds them and a red one where not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from clipsam.runtime.calibration.calibrate import Calibrated, Wanted, calibrate
from clipsam.runtime.calibration.expected import contact_sheet
from clipsam.runtime.calibration.histogram import draw_histogram
from clipsam.runtime.calibration.record import SUFFIX
from clipsam.runtime.commands.amounts import share
from clipsam.runtime.commands.engine import add_engine, open_model
from clipsam.runtime.commands.parser import command_parser, whole_number
from clipsam.runtime.commands.progress import counted
from clipsam.runtime.commands.sensitivity import add_options, read_options
from clipsam.runtime.core.errors import CalibrationError, OptionError, OutputError
from clipsam.runtime.images.reader import write_png
from clipsam.runtime.options import to_calibrate
from clipsam.runtime.results.jobs import find_jobs
from clipsam.runtime.station.labelled import labelled_pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    args = _parser().parse_args(argv)
    output = args.output
    if output.suffix != SUFFIX and output.name:
        output = output.with_name(output.name + SUFFIX)
    if output.is_dir():
        raise OutputError(f"{output} is a folder: give the name of a file as --output.")
    for folder in filter(None, (args.good, args.defective)):
        if not folder.is_dir():
            raise CalibrationError(f"{folder} is no folder: give one that holds pictures of parts.")
    good = [job.source for job in find_jobs([args.good])] if args.good else []
    defective = [job.source for job in find_jobs([args.defective])] if args.defective else []
    if args.store:
        labelled = labelled_pictures(args.store, args.category)
        good += labelled.good
        defective += labelled.defective
        if labelled.gone:
            print(f"note: {labelled.gone} labelled parts have no picture.", file=sys.stderr)
    if not good:
        raise OptionError("Say which parts are good: --good FOLDER, --store line.db, or both.")
    options = read_options(args)
    wanted = Wanted(args.false_alarms, args.confidence, args.reference, args.planted)
    start = time.monotonic()
    with open_model(args, args.bundle, options) as model:
        made_with = to_calibrate(options, model.bundle.id, args.category)
        model.bundle.text(args.category)
        observe = partial(model.observe, category=args.category)
        done = calibrate(observe, good, defective, wanted, made_with, options.area, _show)
    title = f"{args.category}, bundle {done.calibration.bundle}"
    sheet = contact_sheet(done.examples, done.found) if done.examples else None
    identity = done.calibration.write(output)
    base = output.with_suffix("")
    limit = done.calibration.limit
    write_png(base.with_name(base.name + ".scores.png"), draw_histogram(done.scores, limit, title))
    if sheet is not None:
        write_png(base.with_name(base.name + ".planted.png"), sheet)
    for sentence in done.skipped:
        print(f"note: left out: {sentence}", file=sys.stderr)
    print(report(done))
    print(f"calibration {identity} in {output} ({time.monotonic() - start:.0f} s)")
    return 0


def report(done: Calibrated) -> str:
    """What a person wants to know of a calibration."""
    found, promise, notes = done.calibration, done.calibration.promise, done.calibration.notes
    lines = [
        f"limit {found.limit:.4f}: of good parts like these, at most "
        f"{100 * promise.false_alarms:.2g} % score above it, with {100 * promise.confidence:g} % "
        f"confidence ({promise.above} of {promise.parts} do)."
    ]
    if promise.duplicates:
        lines.append(f"{promise.duplicates} pictures show a part that was seen already.")
    if found.reference is not None:
        ranks = notes["auroc_on_planted"]
        told = ", ".join(f"{name} {value:.3f}" for name, value in ranks.items())
        used = "added to the score" if found.reference.weight else "not added, they do harm"
        lines.append(
            f"{len(np.unique(found.reference.parts))} reference parts, {used}"
            + (f" (planted defects told from good parts: {told})." if told else ".")
        )
    planted = notes["planted"]
    if planted["of"]:
        lines.append(
            f"An estimate: of {planted['of']} defects drawn onto these parts the limit finds "
            f"{planted['found']}. Real ones are others."
        )
        for title in ("size", "kind"):
            rows = planted.get(title, {})
            lines += [f"  {name}: {hit} of {of}" for name, (hit, of) in rows.items()]
    if "defective" in notes:
        true = notes["defective"]
        low, high = true["recall"]
        lines.append(
            f"Of {true['of']} truly defective parts: {true['found']} found (recall "
            f"{100 * low:.0f} to {100 * high:.0f} % with {100 * promise.confidence:g} % "
            f"confidence), {true['not_judged']} not judged; AUROC {true['auroc']:.3f}."
        )
    return "\n".join(lines)


def _show(what: str, done: int, total: int) -> None:
    counted(what)(done, total)


def _parser() -> argparse.ArgumentParser:
    usual = Wanted()
    parser = command_parser("clipsam calibrate", __doc__)
    add = parser.add_argument
    add("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    add("--good", type=Path, help="folder of pictures of good parts")
    add("--store", type=Path, help="of `clipsam watch`: the parts that were labelled there")
    add("--defective", type=Path, help="folder of pictures of defective parts, to measure recall")
    add("--category", default="object", help='what the part is, e.g. "metal nut"')
    add(
        "--false-alarms",
        type=share,
        default=usual.false_alarms,
        metavar="SHARE",
        help="of good parts that may be called anomalous, e.g. 5%% (default: %(default)s)",
    )
    add(
        "--confidence",
        type=share,
        default=usual.confidence,
        metavar="SHARE",
        help="of that promise (default: %(default)s)",
    )
    add(
        "--reference",
        type=whole_number(0, 10_000),
        default=usual.reference,
        metavar="N",
        help="good parts to compare with (default: %(default)s)",
    )
    add(
        "--planted",
        type=whole_number(0, 10_000),
        default=usual.planted,
        metavar="N",
        help="defects to draw (default: %(default)s)",
    )
    add("--output", type=Path, required=True, metavar="NAME.calibration")
    add_options(parser, limit=False)
    add_engine(parser)
    return parser
