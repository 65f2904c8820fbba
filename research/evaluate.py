"""Measure a bundle on a data set: AUROC, AP, F1-max and PRO per defect or category, and the mean.

    clipsam evaluate bundles/tiny path/to/steel --category steel
    clipsam evaluate bundles/tiny path/to/parts --calibration parts.calibration
    clipsam evaluate bundles/tiny path/to/mvtec --protocol table1 --csv rows.csv
    clipsam evaluate bundles/tiny synthetic --sheet sheet.png --per-image images.csv
    clipsam evaluate --torch paper path/to/VisA --umci_weights umci.safetensors --sam_weights ...

A bundle runs exactly as on the box. Pixels are pooled over a row's images after resizing map and
mask to `--size` (0: as they are). A defect's row pools its images and the good ones; a data set
without good images still has good pixels. Where there are no masks, or no good or no defective
images, what can be computed is, and what cannot is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.cli.run import add_dataset, check_outputs, run_command
from clipsam.research.data.datasets import (
    LabelledImage,
    limits,
)
from clipsam.research.data.selection import select_items
from clipsam.research.evaluation.contact_sheet import (
    contact_row,
    sheet_indices,
    small_map,
    with_final,
    write_sheet,
)
from clipsam.research.evaluation.normalisation import (
    DATASET,
    FIXED,
    IMAGE,
    NORMS,
    headroom,
    unclipped,
)
from clipsam.research.evaluation.protocols import (
    ABLATIONS,
    PROTOCOLS,
    check_protocol,
    format_protocol,
    protocol_notes,
)
from clipsam.research.evaluation.subjects import (
    BundleModel,
    Model,
    add_flags,
    check_flags,
    known_word,
    open_model,
)
from clipsam.research.evaluation.tables import (
    Tally,
    dataset_row,
    format_errors,
    format_rows,
    per_image_csv,
    table,
    to_csv,
    verdicts,
)
from clipsam.runtime.commands.parser import command_parser, whole_number
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.core.result import NOT_JUDGED
from clipsam.runtime.images.image import Image
from clipsam.runtime.pipeline import ClipSAM

_NOTHING: Image = np.zeros((0, 0, 3), np.uint8)


def evaluate(
    model: ClipSAM | Model,
    items: Iterable[LabelledImage],
    size: int,
    sheet: dict[int, Image] | None = None,
    without_mmr: bool = False,
    by_defect: bool = True,
    norm: str = FIXED,
) -> Tally:
    """Inspect every item; the contact sheet's rows are filled in for the indices in `sheet`.

    An unknown category falls back to the generic word, as appendix A does. `without_mmr` stops at
    the rough map (table 2). `size` and `by_defect` are `Tally`'s, `norm` is one of `NORMS`.
    """
    subject = BundleModel(model) if isinstance(model, ClipSAM) else model
    tally = Tally(size, by_defect)
    divisor = np.float32(headroom(subject.prompts.max_boxes))
    shown: dict[int, NDArray[np.float32]] = {}
    for index, item in enumerate(items):
        image, mask = item.load() if item.has_truth else (item.load_image(), None)
        category = known_word(subject, item.category)
        inspect = partial(subject.inspect, image, category, not without_mmr)
        result = inspect(IMAGE if norm == IMAGE else FIXED)
        final = result.score_map
        if norm == DATASET:
            final = unclipped(result, inspect) / divisor
        if sheet is not None and index in sheet:
            rough = subject.rough_map(image, category)
            truth = np.zeros(image.shape[:2], np.bool_) if mask is None else mask
            sheet[index] = contact_row(image, truth, rough, subject.prompts, result)
            shown[index] = small_map(final)
        tally.add(
            item,
            final,
            mask,
            result.score,
            anomalous=result.anomalous,
            judged=result.verdict != NOT_JUDGED,
            found=result.mask,
        )
        tally.limits.add(result.limit)
    if norm == DATASET:  # now that all were seen
        for index, small in shown.items():
            assert sheet is not None
            sheet[index] = with_final(sheet[index], tally.stretch(small))
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = _parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(arguments)
    if args.protocol in ABLATIONS:
        from clipsam.research.ablations import main as ablations

        return ablations([*_without(arguments, "--protocol"), "--table", args.protocol[-1]])
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    check_flags(args)
    check_outputs(args.sheet, args.json, args.csv, args.per_image)
    items = select_items(
        args.dataset, args.category, args.count, args.size or 0, args.each, args.layout
    )
    number = PROTOCOLS.get(args.protocol or "")
    dataset, warnings = check_protocol(number, items) if number else ("", [])
    sheet: dict[int, Image] | None = None
    if args.sheet:
        sheet = dict.fromkeys(sheet_indices([item.defect for item in items]), _NOTHING)
    one_category = len({item.group for item in items}) == 1
    with open_model(args) as model:
        size = args.size if args.size is not None else model.size if number else 0
        images = tqdm(items, unit="image")
        tally = evaluate(model, images, size, sheet, args.without_mmr, one_category, args.norm)
        identity, notes = model.identity, [*model.notes, *_unknown_words(model, items)]
    resolution = f"{size}x{size} px" if size else "image size"
    facts = {"model": identity, "resolution": resolution, "norm": args.norm}
    rows = [{**row, **facts} for row in table(tally)]
    print(f"{identity}, {args.dataset}, pooled pixels at {resolution}, norm {args.norm}")
    print(f"{format_rows(rows)}\n{verdicts(tally.images, tally.limit)}")
    notes += limits(items)
    if any("auroc_error" in row for row in rows):
        notes.append(format_errors(rows))
    if args.norm == IMAGE:
        notes.append("every image has a scale of its own: figures over several mean little")
    if number:
        name = "w/o MMR" if args.without_mmr else "ClipSAM"
        print("\n" + format_protocol(number, dataset, [(name, dataset_row(rows))]))
        notes += protocol_notes(number, dataset, resolution)
        if "pro_200" in dataset_row(rows):
            peers = 100 * float(dataset_row(rows)["pro_200"])
            notes.append(f"PRO with the 200 thresholds of most published code: {peers:.1f}")
        if args.each is not None:
            warnings.append(f"only {args.each} images of each defect: not comparable")
        notes += warnings
    for note in notes:
        print(f"note: {note}")
    if args.sheet and sheet:
        write_sheet(args.sheet, [sheet[index] for index in sorted(sheet)])
    if args.json:
        write_bytes(args.json, json.dumps(rows, indent=1).encode())
    if args.csv:
        write_bytes(args.csv, to_csv(rows))
    if args.per_image:
        write_bytes(args.per_image, per_image_csv(tally.images))
    return 0


def _unknown_words(model: Model, items: Iterable[LabelledImage]) -> list[str]:
    """A note where the generic word stood in for a category."""
    words = sorted({item.category for item in items if item.category not in model.categories})
    if not words:
        return []
    some = ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
    return [
        f'the bundle has no text for {some}: the prompts said "object" instead; build it with '
        "--categories to change that"
    ]


def _without(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments without a flag and its value, given as two words or joined by `=`."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != flag and not argument.startswith(f"{flag}="):
            kept.append(argument)
        skip = not skip and argument == flag
    return kept


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "clipsam evaluate",
        __doc__,
        allow_abbrev=False,  # what is not known here may be meant for `ablations`
    )
    parser.add_argument("bundle", help="a bundle's folder; with --torch a preset's name")
    add_dataset(parser)
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), help="a table of the paper")
    parser.add_argument("--size", type=whole_number(0),
        help="side for the metrics; 0: image size (default: 0, CLIP's input with --protocol)"
    )  # fmt: skip
    parser.add_argument(
        "--norm", choices=NORMS, default=FIXED, help="Eq. 9's scale (default: fixed, the box's)"
    )
    parser.add_argument("--without-mmr", action="store_true", help="stop at the rough map")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG)")
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    parser.add_argument("--csv", type=Path, help="write the table as CSV")
    parser.add_argument("--per-image", type=Path, help="write every image as CSV, worst first")
    add_flags(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
