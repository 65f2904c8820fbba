"""`clipsam watch`: judge parts as a camera brings them, and lose none.

SOURCE is a folder that a camera writes to, a camera's index, an address (rtsp://...) or a video
file, or - for paths on standard input. Every verdict is a JSON object on a line of standard output;
a machine that reads them must take a missing answer for a reject.

Exit codes: 0 the source ended, or it was told to stop (SIGTERM, Ctrl-C) and has judged what was
under way; 1 it could not go on, and can be started again; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from clipsam.runtime.commands.amounts import seconds
from clipsam.runtime.commands.engine import add_engine, open_model
from clipsam.runtime.commands.line import add_keeping, add_limits, read_keeping, read_limits
from clipsam.runtime.commands.parser import command_parser, port
from clipsam.runtime.commands.sensitivity import add_options, positive, read_options
from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.station.answers import json_lines
from clipsam.runtime.station.drift import Drift
from clipsam.runtime.station.health import STALLED, Health
from clipsam.runtime.station.housekeeping import Housekeeping
from clipsam.runtime.station.judgement import version
from clipsam.runtime.station.notify import notify
from clipsam.runtime.station.sources.base import Source
from clipsam.runtime.station.sources.camera import (
    DROP,
    QUEUE,
    CameraSource,
    is_camera,
    public_name,
)
from clipsam.runtime.station.sources.folder import FolderSource
from clipsam.runtime.station.sources.lines import Lines, PathSource
from clipsam.runtime.station.station import Options, Station
from clipsam.runtime.station.store import Store

_PATIENCE = 10  # times the warm-up, for the watchdog


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    args = _parser().parse_args(argv)
    keep = read_keeping(args, args.leave)
    options = Options(args.category, args.deadline_ms, args.serial, keep)
    _check_source(args)
    sensitivity = read_options(args)
    bundle, calibration = read_limits(args)
    with ExitStack() as stack:
        model = stack.enter_context(open_model(args, bundle, sensitivity, calibration))
        model.bundle.text(model.word(args.category))  # an unknown one fails here, not at every part
        store = stack.enter_context(Store(args.store, create=True))
        store.claim()
        start = time.monotonic()
        model.warm_up()
        # A slow machine is no dead one: what it needs for two parts tells how slow it is.
        stalled = max(STALLED, _PATIENCE * (time.monotonic() - start))
        health = Health(_drift(model), _about(args, model), stalled)
        source = _source(args, store, health)
        stack.callback(source.close)
        station = Station(
            model, store, source, options, [] if args.quiet else [json_lines(sys.stdout)], health
        )
        stack.enter_context(
            Housekeeping(
                health,
                store,
                keep,
                lambda: health.snapshot(source.figures()),
                health_file=args.health_file,
                metrics_file=args.metrics_file,
                metrics_port=args.metrics_port,
            )
        )
        stack.enter_context(_told_to_stop(station))
        notify("READY=1")
        station.note("start", f"clipsam {version()} on {model.provider}, bundle {model.bundle.id}")
        print(f"watching {_shown(args.source)}; every part in {args.store}", file=sys.stderr)
        station.run()
        station.note("stop", "")
        notify("STOPPING=1")
    return 0


@contextmanager
def _told_to_stop(station: Station) -> Generator[None, None, None]:
    """The first SIGTERM or Ctrl-C ends the station well, the second at once."""
    before: dict[int, Any] = {}

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        station.stop()

    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGTERM), int(signal.SIGINT)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_source(args: argparse.Namespace) -> None:
    """Raise OptionError for a SOURCE that is nothing, before anything is written."""
    if is_camera(args.source):
        return
    if args.source != "-" and not Path(args.source).is_dir():
        raise OptionError(
            f"{args.source} is no folder, camera or video: give a folder that is there, a "
            "camera's index, an address such as rtsp://..., or - for paths on standard input."
        )
    if args.every or args.on_line or args.behind:
        raise OptionError(
            "--every, --on-line and --behind are for cameras: every file of a folder is judged."
        )


def _source(args: argparse.Namespace, store: Store, health: Health) -> Source:
    """What SOURCE names. Raises OptionError for a video that cannot be opened."""
    if args.source == "-":
        return PathSource(Lines(_standard_input()))
    if is_camera(args.source):
        return CameraSource(
            args.source,
            health.alarm,
            interval=args.every,
            triggers=Lines(_standard_input()) if args.on_line else None,
            behind=args.behind,
        )
    return FolderSource(
        Path(args.source),
        health.alarm,
        lambda name, state: store.holds_file(name, *state[:2]),
        without=store.pictures,
        rescan=args.rescan,
    )


def _standard_input() -> TextIO:
    """A stream of its own: a thread that waits in `sys.stdin` would keep Python from ending."""
    return os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8", errors="surrogateescape")


def _drift(model: ClipSAM) -> Drift | None:
    """The scores of the good parts that the limit was found by, to compare with."""
    if model.calibration is None:
        return None
    return Drift(model.calibration.good_scores, model.calibration.limit)


def _about(args: argparse.Namespace, model: ClipSAM) -> dict[str, Any]:
    return {
        "version": version(),
        "watched": _shown(args.source),
        "store": str(args.store),
        "category": model.word(args.category),
        "calibration": model.calibration.id if model.calibration else None,
        "bundle": model.bundle.id,
        "provider": model.provider,
        "precisions": model.precisions,
    }


def _shown(source: str) -> str:
    return public_name(source) if "://" in source else source


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression ({error})") from None


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam watch", __doc__)
    add = parser.add_argument
    add("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    add("source", help="a folder, a camera's index, an address, a video file, or -")
    add("--store", type=Path, required=True, help="the file of rows, e.g. line.db; made if missing")
    add_limits(parser)
    add(
        "--category",
        help='what the part is, e.g. "metal nut" (default: the calibration\'s, else "object")',
    )
    add("--serial", type=_regex, metavar="REGEX", help="finds the serial number in a file's name")
    add_options(parser)
    group = parser.add_argument_group("cameras")
    add = group.add_argument
    trigger = group.add_mutually_exclusive_group()
    trigger.add_argument("--every", type=seconds, metavar="TIME", help="a part every 500ms, 2s")
    trigger.add_argument(
        "--on-line",
        action="store_true",
        help="a part for every line of standard input, which is its serial number",
    )
    add(
        "--behind",
        choices=(DROP, QUEUE),
        help="frames that come too fast: the newest is judged next, or all in turn (default: drop "
        "of a camera, queue of a file)",
    )
    add = add_keeping(parser).add_argument
    add("--leave", action="store_true", help="leave a folder's pictures where they are")
    add("--rescan", type=seconds, default=10.0, metavar="TIME",
        help="between searches of the folder, for what was not told of (default: 10s)")  # fmt: skip
    group = parser.add_argument_group("answers and health")
    add = group.add_argument
    add("--quiet", action="store_true", help="print no verdicts")
    add("--health-file", type=Path, metavar="FILE", help="write JSON every 5 s")
    add("--metrics-file", type=Path, metavar="FILE.prom", help="the same for Prometheus")
    add("--metrics-port", type=port(), metavar="PORT", help="the same, served on 127.0.0.1")
    add_engine(parser).add_argument("--deadline-ms", type=positive, metavar="MS",
        help="leave SAM out when it would take longer than this in all")  # fmt: skip
    return parser
