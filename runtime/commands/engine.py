"""The flags that say what runs the graphs, the same on every command that opens a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import PROVIDERS
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.commands.parser import whole_number
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.pipeline import ClipSAM


def add_engine(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags; returns their group, for more of it."""
    group = parser.add_argument_group("what runs")
    add_graphs(group)
    add = group.add_argument
    add(
        "--device-id",
        type=int,
        metavar="N",
        help="which GPU, as CUDA counts them (default: the first)",
    )
    add("--threads", type=whole_number(), help="CPU threads (default: all cores)")
    return group


def add_graphs(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say which of a bundle's graphs run, and by what."""
    add = parser.add_argument
    add(
        "--provider",
        choices=tuple(PROVIDERS),
        default="cpu",
        help="what runs the graphs: onnxruntime on the CPU (default) or by CUDA, or TensorRT",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        help="of the graphs (default: the provider's fastest that the bundle has; int8 only if "
        "asked for)",
    )


def open_model(
    args: argparse.Namespace,
    bundle: Bundle | Path,
    options: InspectOptions,
    calibration: Calibration | Path | None = None,
) -> ClipSAM:
    """`ClipSAM.open` with what the flags say; raises as it does."""
    return ClipSAM.open(
        bundle,
        args.provider,
        args.threads,
        args.precision,
        args.device_id,
        options=options,
        calibration=calibration,
    )
