"""What the commands of `research` have in common: the data set, files, how they end."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from clipsam.research.data.layouts import LAYOUTS
from clipsam.runtime.commands.parser import whole_number
from clipsam.runtime.core.errors import ClipSAMError, OutputError
from clipsam.runtime.core.stop import is_closed_pipe


def check_outputs(*paths: Path | None) -> None:
    """Raise OutputError unless these files can be written; asked before hours of work."""
    for path in paths:
        if path is None:
            continue
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror or error}): give another file."
            ) from error


def sentence(error: BaseException) -> str:
    """The message of an error; of one that a process loading data passed on, without its trace."""
    lines = str(error).strip().splitlines()
    if len(lines) > 1 and lines[0].startswith("Caught ") and "DataLoader worker" in lines[0]:
        return lines[-1].partition(": ")[2] or lines[-1]
    return str(error)


def _let_go(error: BaseException) -> None:
    """Free what the interrupted work held, silently: a half-built loader prints a traceback when it
    is freed, below our one sentence."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    error.__traceback__ = error.__context__ = None
    gc.collect()
    sys.unraisablehook = hook


def run_command(work: Callable[[], int], after_interrupt: str = "nothing was written") -> int:
    """The exit code of `work`: 1 with one sentence on stderr if it failed in a way we foresee, 130
    if it was interrupted. `after_interrupt` says what became of what was done by then."""
    try:
        return work()
    except ClipSAMError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        reason = (str(error).strip().splitlines() or ["out of memory"])[0][:160].rstrip(".")
        print(
            f"error: The device's memory is too small ({reason}): in training use --precision bf16 "
            "or a smaller --batch_size, else --device cpu.",
            file=sys.stderr,
        )
    except OSError as error:  # a disk that is full or gone, a file that may not be read
        if is_closed_pipe(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        what = error.filename or "A file"
        print(
            f"error: {what} cannot be read or written ({error.strerror or error}): look at the "
            "disk and at whose files these are.",
            file=sys.stderr,
        )
    except KeyboardInterrupt as error:
        print(f"interrupted; {after_interrupt}.", file=sys.stderr)
        _let_go(error)
        return 130
    return 1


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """The data set to work on, as `selection.select_items` takes it."""
    add = parser.add_argument
    add("dataset", help="a folder, `synthetic`, or `synthetic-fine`: small defects")
    add("--layout", choices=tuple(LAYOUTS), help="default: found by looking")
    add("--category", help="the prompts' word (default: the folder's name)")
    add("--each", type=whole_number(), help="only N images of each defect, evenly spread")
    add("--count", type=whole_number(), default=200, help="images of the synthetic set")
