"""Does the bundle say what PyTorch says? Per graph, in every precision.

Nothing is written that fails here: a bundle whose graphs are wrong looks exactly like one whose
model is bad. Half precision is judged by what the graph computes, not by what onnxruntime's CPU
provider makes of it: see `export/parity/half_emulation.py`. bf16, which that provider cannot run at
all, is checked in this way only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from clipsam.export.parity.half_emulation import emulate
from clipsam.export.parity.inputs import GraphCase
from clipsam.export.parity.tensors import GraphCheck, compare, fault
from clipsam.export.precisions.recipes import RECIPES
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.backends.precision import safer_than
from clipsam.runtime.backends.providers import can_run
from clipsam.runtime.core.errors import ExportError
from clipsam.runtime.manifest import FLOAT32, GRAPHS

Arrays = Mapping[str, NDArray[Any]]


class DisagreementError(ExportError):
    """A graph is out of tolerance.

    Attributes:
      reason: what of it is, for use inside a sentence.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class GoldenCase:
    """One input of a graph and what PyTorch in float32 makes of it."""

    name: str
    feeds: Arrays
    outputs: Arrays


@torch.no_grad()
def golden_cases(name: str, module: nn.Module, cases: Iterable[GraphCase]) -> list[GoldenCase]:
    """What the float32 module of the graph called `name` says of every case."""
    golden = []
    for case in cases:
        outputs = module(*case.feeds.values())
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays = (tensor.numpy() for tensor in tensors)
        golden.append(
            GoldenCase(
                case.name,
                {key: value.numpy() for key, value in case.feeds.items()},
                dict(zip(GRAPHS[name][1], arrays, strict=True)),
            )
        )
    return golden


@contextlib.contextmanager
def checkable(path: Path, precision: str) -> Iterator[Path]:
    """The file to run on a CPU for what the graph at `path` computes; gone afterwards if made."""
    if not RECIPES[precision].emulated:
        yield path
        return
    emulated = path.with_name(f".{path.stem}.emulated.onnx")
    try:
        emulate(path, emulated)
        yield emulated
    finally:
        emulated.unlink(missing_ok=True)


def check_graph(
    name: str,
    path: Path,
    golden: Iterable[GoldenCase],
    precision: str = FLOAT32,
    threads: int | None = None,
    emulated: bool = True,
) -> list[GraphCheck]:
    """Run the ONNX file at `path` on the inputs of the golden cases.

    With `emulated` false onnxruntime runs the file itself, which says that it can, and little
    about precision. Raises DisagreementError, naming graph, error, tolerance and what to use
    instead, at the first case that disagrees.
    """
    checks = []
    with (
        checkable(path, precision if emulated else FLOAT32) as file,
        open_session(file, "cpu", threads) as session,
    ):
        for case in golden:
            found = session.run(case.feeds)
            for output, expected in case.outputs.items():
                check = compare(name, case.name, output, expected, found[output], precision)
                checks.append(check)
                if not check.passed:
                    raise _disagreement(check)
    return checks


def _disagreement(check: GraphCheck) -> DisagreementError:
    reason = f"{check.output} of '{check.case}' {fault(check)}"
    return DisagreementError(
        f"The graph {check.graph} in {check.precision} does not agree with PyTorch: {reason}; no "
        f"bundle was written. {remedy(check.precision)}",
        reason,
    )


def remedy(precision: str) -> str:
    """The sentence that says what to do when a graph of this precision is out of tolerance."""
    if precision == FLOAT32:
        return "Try another --opset, or the library versions of the constraints file."
    safer = safer_than(precision)
    use = next(name for name in safer if can_run("cpu", name))
    nearer = [name for name in safer[: safer.index(use)] if can_run("tensorrt", name)]
    also = f" (or {' or '.join(nearer)} for TensorRT)" if nearer else ""
    return f"Leave out --precision {precision}, and use {use}{also} for this model."


def summary(checks: Sequence[GraphCheck]) -> dict[str, dict[str, float]]:
    """The worst case of every graph of one precision, for the manifest."""
    worst: dict[str, dict[str, float]] = {}
    for check in checks:
        entry = worst.setdefault(
            check.graph,
            {"max_abs": 0.0, "max_rel": 0.0, "rms_rel": 0.0, "tolerance": 0.0},
        )
        for key in entry:
            entry[key] = max(entry[key], getattr(check, key))
    return worst


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns of dictionaries with the same keys, floats in short form."""
    if not rows:
        return ""
    cells = [list(rows[0])] + [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):  # an overlap just below 1 must not read as 1
        return f"{value:.6f}" if 0.9 < value < 1 else f"{value:.2g}"
    return str(value)
