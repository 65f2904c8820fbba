"""The `clipsam` command: finds the subcommand in `commands.COMMANDS` and runs it.

Exit codes: 0 everything asked for was done; 1 it could not be done, or not all of it (one sentence
on stderr says what); 2 wrong usage; 3 all but pictures that are not judged; 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from clipsam.runtime.commands import COMMANDS
from clipsam.runtime.core.errors import ClipSAMError, MissingBackendError
from clipsam.runtime.core.stop import heed_stop_signals, is_closed_pipe, stops_held

EPILOG = __doc__.split("\n\n", 1)[1] if __doc__ else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if argv is None:  # a program, not a call
        heed_stop_signals()
    try:
        for stream in (sys.stdout, sys.stderr):  # a terminal may not know the letters of a path
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        code = _run(*_command(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except OSError as error:
        if is_closed_pipe(error):  # for what is still to flush
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif error.filename is None:
            raise  # no path that was given, but a mistake of ours
        else:
            print(f"error: {error.filename} cannot be used ({error.strerror}).", file=sys.stderr)
        return 1
    except ClipSAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        return 130
    finally:
        if argv is None:  # what is left ends the process at once, without a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _command(words: Sequence[str]) -> tuple[str, list[str]]:
    """The subcommand's name and its own arguments; exits on --help, --version and wrong usage."""
    import argparse  # here, so that little is imported before `main` heeds Ctrl-C
    import difflib

    parser = argparse.ArgumentParser(
        prog="clipsam",
        usage="clipsam [-h] [--version] COMMAND ...",
        description="Zero-shot anomaly segmentation: find defects without defect samples.",
        epilog=f"commands (`clipsam COMMAND --help` says more):\n{_listing()}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    if words and not words[0].startswith("-"):
        name = words[0]
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"use {', '.join(COMMANDS)}."
            parser.error(f"There is no command {name!r}: {hint}")
        return name, list(words[1:])
    if not parser.parse_args(words).version:
        parser.error(f"Name a command: {', '.join(COMMANDS)}.")
    from clipsam.runtime import __version__

    print(f"clipsam {__version__}")
    raise SystemExit(0)


def _listing() -> str:
    """A line for every command."""
    return "\n".join(
        f"  {name:15} {command.help}" + (f" (clipsam[{command.extra}])" if command.extra else "")
        for name, command in COMMANDS.items()
    )


def _run(name: str, arguments: list[str]) -> int:
    """Import the command and run it; a library it lacks becomes a sentence that names the extra."""
    module, extra, _ = COMMANDS[name]
    try:
        with stops_held():
            command = importlib.import_module(f"clipsam.{module}")
        code: int = command.main(arguments)
        return code
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not extra or missing in ("", "clipsam", *sys.stdlib_module_names):
            raise  # a mistake of ours, not a library that was left out
        raise MissingBackendError(
            f"`clipsam {name}` needs {missing}: pip install 'clipsam[{extra}]'."
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
