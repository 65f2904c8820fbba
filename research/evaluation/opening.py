"""A bundle on the fastest provider that opens it here, unless one is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import PROVIDERS
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.commands.parser import whole_number
from clipsam.runtime.core.errors import SessionError
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.pipeline import ClipSAM

FASTEST_FIRST = ("tensorrt", "cuda", "cpu")


@contextmanager
def open_bundle(
    folder: str | Bundle,
    provider: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    *,
    options: InspectOptions | None = None,
    calibration: Path | None = None,
    say: Callable[[str], object] = lambda text: print(text, file=sys.stderr),
) -> Iterator[ClipSAM]:
    """The bundle on `provider`; on None on the first of `FASTEST_FIRST` that really opens it here.

    What opens it, in what precision, and why a faster one does not, is said. Raises BundleError or
    OptionError, and SessionError where no provider opens it.
    """
    asked = FASTEST_FIRST if provider is None else (provider,)
    for name in asked:
        try:
            model = ClipSAM.open(
                folder, name, threads, precision, options=options, calibration=calibration
            )
        except SessionError as error:
            if name == asked[-1]:
                raise
            say(f"not on {name}: {error}")
            continue
        break
    with model:
        say(f"on {runs_on(model)}")
        yield model


def runs_on(model: ClipSAM) -> str:
    """What really runs the graphs, and in what: "tensorrt, fp16"."""
    return f"{model.provider}, {' and '.join(dict.fromkeys(model.precisions.values()))}"


def add_bundle_flags(parser: argparse._ActionsContainer, precision: str | None = None) -> None:
    """--provider, --precision (by default `precision`; None: the provider's fastest), --threads."""
    parser.add_argument(
        "--provider",
        choices=tuple(PROVIDERS),
        help=f"default: the first of {', '.join(FASTEST_FIRST)} that opens the bundle here",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=precision,
        help=f"of its graphs (default: {precision or 'the fastest the provider takes unasked'})",
    )
    parser.add_argument("--threads", type=whole_number(), help="of the CPU (default: all)")
