"""`clipsam dataset check ROOT`: what a data set holds and what is wrong with it.

    clipsam dataset check path/to/VisA
    clipsam dataset check path/to/my_parts --layout folder --json report.json

Every file is read once before a long run starts: image headers (a truncated file is told from
them), masks in full. Prints images and masks per category and defect, every problem with its path,
and which figures can be computed. Exit code 0: nothing is wrong; 1: there are problems, or it is no
data set; 2: wrong usage. Layouts: mvtec (also VisA_pytorch/1cls), visa, mtd, ksdd2, folder.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clipsam.research.cli.run import check_outputs, run_command
from clipsam.research.data.datasets import (
    LAYOUTS,
    LabelledImage,
    Listing,
    limits,
    open_dataset,
    without_masks_at_all,
)
from clipsam.research.data.layouts import MTD_EMPTY_MASKS
from clipsam.research.data.samples import read_mask
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.errors import ImageError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.images.headers import read_header
from clipsam.runtime.images.reader import read_image

THREADS = 4  # waiting for the disk; decoding masks leaves the interpreter free
LABELS = 16  # a mask of more gray levels was smoothed, not labelled

Problem = tuple[Path, str]


@dataclass(frozen=True)
class Report:
    """What `check` found; counts by (category, defect)."""

    layout: str
    images: Counter[tuple[str, str]]
    masks: Counter[tuple[str, str]]
    train: int
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(listing: Listing, progress: Callable[[int], object] = lambda done: None) -> Report:
    """Read every file of the listing; `progress` is told each time how many more are done."""
    report = Report(listing.layout, Counter(), Counter(), len(listing.train))
    report.problems.extend(listing.problems)
    report.notes.extend(listing.notes)
    for item in listing.images:
        key = (item.group, item.defect)
        report.images[key] += 1
        report.masks[key] += item.mask_path is not None
    tasks = [partial(_check_item, item) for item in listing.images]
    tasks += [partial(_check_image, path) for path in listing.train]
    empty: Counter[str] = Counter()
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(lambda task: task(), tasks):
            for path, problem in found:
                if problem == _EMPTY and path.parent.parent.name == MTD_EMPTY_MASKS:
                    empty[MTD_EMPTY_MASKS] += 1
                else:
                    report.problems.append((path, problem))
            progress(1)
    report.problems.extend(_duplicates(listing))
    for name, count in empty.items():
        report.notes.append(
            f"{count} masks of {name} are empty (the published set has 4): their images count as "
            "defective, all their pixels as good"
        )
    report.notes.extend(limits(listing.images))
    _settle_unmasked(report, listing)
    return report


def _settle_unmasked(report: Report, listing: Listing) -> None:
    """A defect without any mask is a note (a folder without truth), a gap among masks a problem."""
    if listing.layout not in ("mvtec", "folder"):
        return  # the published sets have a mask for everything
    meant = without_masks_at_all(listing.images)
    paths = {item.image_path for item in listing.images if (item.group, item.defect) in meant}
    report.problems[:] = [
        (path, problem)
        for path, problem in report.problems
        if not (path in paths and problem.startswith("has no mask"))
    ]


_EMPTY = "is empty: no pixel is marked"


def _check_item(item: LabelledImage) -> list[Problem]:
    assert item.image_path is not None
    problems = _check_image(item.image_path)
    if item.mask_path is None:
        return problems
    path, mask = item.mask_path, read_mask(item.mask_path)
    if mask is None:
        return [*problems, (path, "cannot be read: copy it again")]
    size = None if problems else _size(item.image_path)
    if size is not None and size != mask.shape[::-1]:
        here = f"{mask.shape[1]}x{mask.shape[0]}"
        problems.append((path, f"is {here}, its image is {size[0]}x{size[1]}"))
    levels = np.unique(mask)
    if not (mask > item.mask_above).any():
        above = f" above {item.mask_above}" if item.mask_above and levels[-1] else ""
        problems.append((path, _EMPTY + above))
    elif (mask > item.mask_above).all():
        problems.append((path, "marks every pixel: is it inverted?"))
    if item.mask_above == 0 and len(levels) > LABELS:
        problems.append(
            (
                path,
                f"has {len(levels)} gray levels, all above 0 count as defective: was it smoothed, "
                "or saved as JPEG?",
            )
        )
    return problems


def _check_image(path: Path) -> list[Problem]:
    """Reads the bytes and looks at the header; decodes only what it does not understand."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return [(path, f"cannot be read ({error.strerror})")]
    header = read_header(data) if data else None
    plain = header is not None and header.bits <= 8 and header.frames == 1
    if plain and header and not (header.problem or header.alpha or header.cmyk):
        return []
    try:  # the reader's own sentence says what is wrong
        read_image(path)
    except ImageError as error:
        return [(path, str(error).removeprefix(f"{path} ").rstrip("."))]
    return []


def _size(path: Path) -> tuple[int, int]:
    """Width and height as decoded."""
    data = path.read_bytes()
    header = read_header(data)
    if header is None or b"Exif" in data[:65536]:  # may say that the camera was rotated
        height, width = read_image(path).shape[:2]
        return width, height
    return header.width, header.height


def _duplicates(listing: Listing) -> list[Problem]:
    """Images that differ in their suffix alone: they would share a mask and a result."""
    seen: dict[Path, Path] = {}
    found = []
    for item in listing.images:
        assert item.image_path is not None
        first = seen.setdefault(item.image_path.with_suffix(""), item.image_path)
        if first != item.image_path:
            found.append((item.image_path, f"has the same name as {first.name}"))
    return found


def format_report(report: Report) -> str:
    """The counts as a Markdown table, then notes, then problems, a line each."""
    lines = [
        f"layout {report.layout}",
        "| category | defect | images | masks |",
        "| --- " * 4 + "|",
    ]
    for (group, defect), count in sorted(report.images.items()):
        masks = "" if defect == "good" else str(report.masks[group, defect])
        lines.append(f"| {group} | {defect} | {count} | {masks} |")
    total, masks_total = sum(report.images.values()), sum(report.masks.values())
    lines.append(f"| all | | {total} | {masks_total} |")
    if report.train:
        lines.append(f"{report.train} images in the training split, not used by zero-shot methods")
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"problem: {path} {problem}" for path, problem in report.problems]
    lines.append(f"{len(report.problems)} problems" if report.problems else "no problems")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line (`clipsam dataset ...`); returns the exit code."""
    args = make_parser().parse_args(argv)
    return run_command(lambda: _run(args))


def make_parser() -> argparse.ArgumentParser:
    """The parser of `clipsam dataset`."""
    parser = command_parser("clipsam dataset", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="count and check images and masks")
    command.add_argument("root", type=Path)
    command.add_argument("--layout", choices=tuple(LAYOUTS), help="default: found by looking")
    command.add_argument("--json", type=Path, help="write counts, notes and problems as JSON")
    return parser


def _run(args: argparse.Namespace) -> int:
    check_outputs(args.json)
    listing = open_dataset(args.root, layout=args.layout)
    with tqdm(total=len(listing.images) + len(listing.train), unit="image") as bar:
        report = check(listing, bar.update)
    if args.json:
        write_bytes(args.json, _to_json(report))
    print(format_report(report))
    return 1 if report.problems else 0


def _to_json(report: Report) -> bytes:
    counts = [
        {"category": group, "defect": defect, "images": n, "masks": report.masks[group, defect]}
        for (group, defect), n in sorted(report.images.items())
    ]
    problems = [{"path": str(path), "problem": problem} for path, problem in report.problems]
    whole = {
        "layout": report.layout,
        "counts": counts,
        "train": report.train,
        "notes": report.notes,
        "problems": problems,
    }
    return json.dumps(whole, indent=1).encode()


if __name__ == "__main__":
    raise SystemExit(main())
