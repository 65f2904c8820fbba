"""`clipsam store`: check, export, prune and push what `clipsam watch` wrote.

Exit codes: 0 done, and the store is sound; 1 it could not be done, or `check` found something (each
on a line of its own), or a row that was pushed was refused; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from clipsam.runtime.commands import push
from clipsam.runtime.commands.amounts import byte_count, days
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.result import VERDICTS
from clipsam.runtime.station.exporting import FORMATS, export, write_csv, write_jsonl
from clipsam.runtime.station.part import LABELS, Part
from clipsam.runtime.station.schema import iso
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import check, prune


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    args = _parser().parse_args(argv)
    code: int = args.run(args)
    return code


def _check(args: argparse.Namespace) -> int:
    with Store(args.store) as store:
        problems = check(store)
        for problem in problems:
            print(problem)
        print(
            f"{_counts(store)}; "
            + (f"{len(problems)} found wrong." if problems else "nothing found wrong.")
        )
    return 1 if problems else 0


def _export(args: argparse.Namespace) -> int:
    with Store(args.store, read_only=True) as store:
        parts = _selected(store, args)
        if args.output is not None:
            print(f"{export(parts, args.output, args.format)} parts in {args.output}")
        elif args.format == "parquet":
            args.parser.error("Parquet cannot be printed: give --output FILE.")
        else:
            (write_csv if args.format == "csv" else write_jsonl)(parts, sys.stdout)
    return 0


def _prune(args: argparse.Namespace) -> int:
    if args.retain is None and args.quota is None:
        args.parser.error("Say what to remove: --retain, --quota, or both.")
    with Store(args.store) as store:
        done = prune(store, args.retain, args.quota)
    print(f"{done.parts} parts and {done.pictures} files removed, {done.bytes / 1e6:.1f} MB")
    return 0


def _selected(store: Store, args: argparse.Namespace) -> Iterator[Part]:
    conditions, values = ["1"], []
    for condition, value in (
        ("verdict = ?", args.verdict),
        ("label = ?", args.label),
        ("category = ?", args.category),
        ("taken_at >= ?", args.since),
        ("taken_at < ?", args.until),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    return store.parts(" AND ".join(conditions), values)


def _counts(store: Store) -> str:
    counts = store.counts()
    names = {"taken": "waiting to be judged", "not_judged": "not judged"}
    listed = ", ".join(f"{n} {names.get(k, k)}" for k, n in sorted(counts.items()))
    return f"{sum(counts.values())} parts" + (f" ({listed})" if listed else "")


def _time(text: str) -> str:
    """A date or a time, local where it names no zone, as the store writes it."""
    try:
        return iso(datetime.fromisoformat(text.replace("Z", "+00:00")))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: write 2026-01-31 or 2026-01-31T12:30"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam store", __doc__)
    commands = parser.add_subparsers(required=True, metavar="check|export|prune|push")
    for name, run, about in (
        ("check", _check, "SQLite's own check; pictures that are gone or belong to no part"),
        ("export", _export, "write every part as CSV, JSON lines or Parquet"),
        ("prune", _prune, "remove old parts and pictures; those with a label stay"),
        ("push", push.run, push.ABOUT),
    ):
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("store", type=Path, help="e.g. line.db")
        command.set_defaults(run=run, parser=command)
        add = command.add_argument
        if name == "export":
            add("--output", "-o", type=Path, help="a file (default: print)")
            add("--format", choices=tuple(FORMATS), help="default: the file's ending; jsonl")
            add("--verdict", choices=VERDICTS)
            add("--label", choices=LABELS, help="what a person said")
            add("--category")
            add("--since", type=_time, metavar="TIME", help="e.g. 2026-01-31, local time")
            add("--until", type=_time, metavar="TIME", help="not including it")
        if name == "push":
            push.add_arguments(command)
        if name == "prune":
            add("--retain", type=days, metavar="TIME", help="remove older parts, e.g. 90d")
            add("--quota", type=byte_count, metavar="SIZE", help="pictures to keep, e.g. 20GB")
    return parser
