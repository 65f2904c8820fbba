"""`clipsam serve`: inspect over HTTP, with a page to look at.

    clipsam serve bundles/tiny --calibration cookie.calibration --store line.db
    curl -F image=@part.png http://127.0.0.1:8000/inspect

The page is at /, the API described at /openapi.json. Every request is a line of JSON on standard
error.

Exit codes: 0 it was told to stop (SIGTERM, Ctrl-C) and has answered what it took; 1 it could not go
on, and can be started again; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from clipsam.runtime.commands.amounts import byte_count, seconds
from clipsam.runtime.commands.engine import add_engine, open_model
from clipsam.runtime.commands.line import add_keeping, add_limits, read_keeping, read_limits
from clipsam.runtime.commands.parser import command_parser, port, whole_number
from clipsam.runtime.commands.sensitivity import add_options, read_options
from clipsam.runtime.core.errors import ClipSAMError, SessionError
from clipsam.runtime.service.app import make_app
from clipsam.runtime.service.calibrating import Calibrations
from clipsam.runtime.service.guard import write_log
from clipsam.runtime.service.judge import BROKEN, READY, Judge
from clipsam.runtime.service.recorder import Recorder
from clipsam.runtime.service.server import Server, bind, logged_as_json
from clipsam.runtime.service.settings import Settings, read_token
from clipsam.runtime.station.judgement import version
from clipsam.runtime.station.notify import notify
from clipsam.runtime.station.store import Store
from clipsam.runtime.station.upkeep import PRUNE_EVERY

_CPU_BATCH, _GPU_BATCH = 1, 4  # a CPU gains nothing by a batch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    args = _parser().parse_args(argv)
    settings = Settings(
        args.host,
        args.queue,
        args.batch or (_CPU_BATCH if args.provider == "cpu" else _GPU_BATCH),
        args.timeout,
        args.body_timeout,
        args.max_body,
        args.max_pixels,
        read_token(args.token_file) if args.token_file else None,
    )
    sensitivity = read_options(args)
    with ExitStack() as stack:
        stack.enter_context(logged_as_json())
        listener = stack.enter_context(bind(args.host, args.port))
        bundle, calibration = read_limits(args)
        model = stack.enter_context(open_model(args, bundle, sensitivity, calibration))
        recorder = None
        if args.store is not None:
            store = stack.enter_context(Store(args.store, create=True))
            store.claim()
            recorder = Recorder(store, read_keeping(args))
            _keep_pruning(stack, recorder)

        def told(state: str) -> None:
            write_log("state", "error" if state == BROKEN else "info", state=state)
            if state == READY:
                notify("READY=1")
            elif state == BROKEN:
                server.stop()

        judge = Judge(model, settings.queue, settings.batch, settings.max_pixels, told)
        learning = None
        if args.calibrations is not None:
            learning = Calibrations(judge, args.calibrations)
        app = make_app(judge, settings, recorder, version(), learning)
        server = Server(app, settings)
        address = listener.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"clipsam {version()} listens on http://{host}:{address[1]}", file=sys.stderr)
        if not settings.local and settings.token is None:
            print(
                f"note: anybody who reaches {args.host} can use it: give --token-file, and put a "
                "reverse proxy with TLS in front.",
                file=sys.stderr,
            )
        judge.start()
        stack.callback(judge.close)
        if learning is not None:
            stack.callback(learning.close)
        server.run([listener])
        notify("STOPPING=1")
        if judge.state == BROKEN:
            raise SessionError(judge.error)
    return 0


def _keep_pruning(stack: ExitStack, recorder: Recorder) -> None:
    """Prune now and then, until the stack ends."""
    end = threading.Event()

    def work() -> None:
        while True:
            try:
                recorder.prune()
            except ClipSAMError as error:
                write_log("prune", "error", message=str(error))
            if end.wait(PRUNE_EVERY):
                return

    thread = threading.Thread(target=work, name="clipsam-upkeep", daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(end.set)


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = command_parser("clipsam serve", __doc__)
    add = parser.add_argument
    add("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    add_limits(parser)
    add("--calibrations", type=Path, metavar="FOLDER",
        help="let clients calibrate, and judge by what they made; the files go here")  # fmt: skip
    add("--store", type=Path, help="keep a row for every part, e.g. line.db; made if missing")
    add("--host", default=usual.host, help="default: %(default)s, this machine alone")
    add("--port", type=port(0), default=8000, help="default: %(default)s; 0: any that is free")
    add("--token-file", type=Path, metavar="FILE", help="holds the bearer token to ask for")
    add_options(parser)
    group = parser.add_argument_group("bounds")
    add = group.add_argument
    add("--queue", type=whole_number(), default=usual.queue, metavar="N",
        help="pictures under way at once; more get 429 (default: %(default)s)")  # fmt: skip
    add("--batch", type=whole_number(), metavar="N",
        help="pictures that CLIP takes at once "
        f"(default: {_CPU_BATCH} on a CPU, {_GPU_BATCH} on a GPU)")  # fmt: skip
    add("--timeout", type=seconds, default=usual.timeout, metavar="TIME",
        help="from a request to its answer (default: %(default)gs)")  # fmt: skip
    add("--body-timeout", type=seconds, default=usual.body_timeout, metavar="TIME",
        help="in which a body has to arrive (default: %(default)gs)")  # fmt: skip
    add("--max-body", type=byte_count, default=usual.max_body, metavar="SIZE",
        help=f"of a request (default: {usual.max_body >> 20} MiB)")  # fmt: skip
    add("--max-pixels", type=whole_number(), default=usual.max_pixels, metavar="N",
        help="of a picture (default: %(default)s)")  # fmt: skip
    add_keeping(parser)
    add_engine(parser)
    return parser
