"""`clipsam store push`: send what changed to a plant's database, once or again and again."""

from __future__ import annotations

import argparse
import socket
import sys
import time

from clipsam.runtime.commands.amounts import seconds
from clipsam.runtime.commands.parser import whole_number
from clipsam.runtime.commands.progress import counted
from clipsam.runtime.core.errors import OutputError, UnreachableError
from clipsam.runtime.core.log import log_to_stderr
from clipsam.runtime.plant.database import shown
from clipsam.runtime.plant.push import Pushed, push
from clipsam.runtime.station.store import Store

ABOUT = "send what changed since the last time to a plant's PostgreSQL database"
_MOST_SIDE = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options beside the store."""
    add = parser.add_argument
    add("database", help="postgresql://user@host/database; the password best in ~/.pgpass")
    add("--box", default=socket.gethostname(), help="this box's name there (default: %(default)s)")
    add("--every", type=seconds, metavar="TIME", help="go on and push every so often, e.g. 1min")
    add(
        "--thumbnails",
        type=whole_number(0, _MOST_SIDE),
        default=320,
        metavar="PIXELS",
        help="longest side of the pictures that are sent; 0: none (default: %(default)s)",
    )
    add("--all", action="store_true", help="send everything again, not only what changed")


def run(args: argparse.Namespace) -> int:
    """Push; returns the exit code. Raises ClipSAMError."""
    place = shown(args.database)  # a wrong address fails at once, also with --every
    everything, away = args.all, False
    with log_to_stderr(), Store(args.store) as store:
        while True:
            try:
                done = push(
                    store,
                    args.database,
                    args.box,
                    side=args.thumbnails,
                    everything=everything,
                    progress=counted("rows"),
                )
            except (UnreachableError, OutputError) as error:
                if args.every is None:
                    raise
                if not away:  # once, not every minute for days
                    print(f"note: {error} Nothing is lost meanwhile.", file=sys.stderr)
                away = True
            else:
                everything = False
                if away:
                    print(f"note: {place} is there again.", file=sys.stderr)
                away = False
                if args.every is None or done != Pushed():
                    print(_told(done, place), flush=True)
                if args.every is None:
                    return 1 if done.refused else 0
            time.sleep(args.every)


def _told(done: Pushed, place: str) -> str:
    refused = f"; {done.refused} rows were refused" if done.refused else ""
    return (
        f"{done.parts} parts, {done.pictures} thumbnails and {done.events} events sent to "
        f"{place}{refused}"
    )
