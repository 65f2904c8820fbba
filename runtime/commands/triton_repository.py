"""`clipsam triton`: a model repository for Triton Inference Server, made of a bundle.

Exit codes: 0 written; 1 it could not be done; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsam.runtime.commands.amounts import seconds
from clipsam.runtime.commands.engine import add_graphs
from clipsam.runtime.commands.parser import command_parser, whole_number
from clipsam.runtime.model_repository.config import Serving
from clipsam.runtime.model_repository.repository import write_repository


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises ClipSAMError."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.engines is not None and args.provider != "tensorrt":
        parser.error("--engines are of --provider tensorrt")
    if args.gpus and args.provider == "cpu":
        parser.error("--gpus are of --provider cuda or tensorrt")
    serving = Serving(
        args.provider,
        args.precision,
        args.engines,
        args.name,
        args.instances,
        tuple(args.gpus),
        args.batch,
        round(args.delay * 1e6),
        args.threads,
    )
    for name, file in write_repository(args.bundle, args.output, serving, args.calibration).items():
        print(f"{name}: {file}")
    print(f"tritonserver --model-repository {args.output.resolve()}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam triton", __doc__)
    add = parser.add_argument
    add("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    add("--output", "-o", type=Path, required=True, help="the repository, a new folder")
    add("--calibration", type=Path, help="a file of `clipsam calibrate`, for the whole method")
    add_graphs(parser)
    add("--engines", metavar="NAME", help="of tensorrt: a folder in the bundle's engines/")
    add("--name", default="clipsam", help="of the whole method's model (default: %(default)s)")
    add("--instances", type=whole_number(), default=1, help="of every model, on every GPU")
    add("--gpus", type=whole_number(0), nargs="+", default=[], metavar="N", help="default: all")
    add("--batch", type=whole_number(), default=8, help="pictures at once (default: %(default)s)")
    add(
        "--delay",
        type=seconds,
        default=0.0005,
        metavar="TIME",
        help="how long a request may wait for others to share a batch, e.g. 2ms (default: 0.5ms)",
    )
    add("--threads", type=whole_number(), help="CPU threads of a graph (default: all cores)")
    return parser
