"""Does the bundle say what PyTorch says? Per graph, and end to end against `Reference`.

Nothing is written that fails here: a bundle whose graphs are wrong looks exactly like one whose
model is bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipsam.export.parity_inputs import GraphCase
from clipsam.runtime.errors import ExportError
from clipsam.runtime.session import Session, open_session

# Largest error of a graph, relative to the largest value of its output. Sums in another order
# move fp32 by 1e-6 to 1e-5 over the 32 blocks of ViT-H; a wrong constant, a dropped term or half
# precision shows as 1e-3 or more.
GRAPH_TOLERANCE = {"clip_umci": 1e-4, "sam_encoder": 1e-4, "sam_decoder": 1e-4}


@dataclass(frozen=True)
class GraphCheck:
    """One output of one graph on one input, against PyTorch."""

    graph: str
    case: str
    output: str
    max_abs: float
    max_rel: float  # relative to the largest absolute value of PyTorch's output
    tolerance: float  # of max_rel
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """For `parity.json`."""
        return asdict(self)


def check_graph(
    name: str,
    module: nn.Module,
    path: Path,
    cases: Iterable[GraphCase],
    threads: int | None = None,
) -> list[GraphCheck]:
    """Run the ONNX file at `path` and the module it came from on the same inputs.

    Raises ExportError, naming graph, error and tolerance, at the first case that disagrees.
    """
    checks = []
    with open_session(path, "cpu", threads) as session:
        for case in cases:
            expected = _run_torch(module, session, case.feeds)
            found = session.run({key: value.numpy() for key, value in case.feeds.items()})
            for output, array in found.items():
                check = compare(name, case.name, output, expected[output], array)
                checks.append(check)
                if not check.passed:
                    raise ExportError(
                        f"The graph {name} does not agree with PyTorch: {output} of "
                        f"'{case.name}' is off by {check.max_rel:.1e} of its largest value, where "
                        f"{check.tolerance:.0e} is allowed; no bundle was written. Try another "
                        "--opset, or the library versions of the constraints file."
                    )
    return checks


def compare(
    graph: str,
    case: str,
    output: str,
    expected: NDArray[np.floating],
    found: NDArray[np.floating],
) -> GraphCheck:
    """Measure one output; a wrong shape or a value that is not finite fails."""
    tolerance = GRAPH_TOLERANCE[graph]
    if expected.shape != found.shape or not np.isfinite(found).all():
        return GraphCheck(graph, case, output, np.inf, np.inf, tolerance, False)
    max_abs = float(np.abs(expected.astype(np.float64) - found).max())
    max_rel = max_abs / max(float(np.abs(expected).max()), 1e-12)
    return GraphCheck(graph, case, output, max_abs, max_rel, tolerance, max_rel <= tolerance)


@torch.no_grad()
def _run_torch(
    module: nn.Module, session: Session, feeds: Mapping[str, Tensor]
) -> dict[str, NDArray[np.floating]]:
    outputs = module(*feeds.values())
    tensors = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: t.numpy() for name, t in zip(session.outputs, tensors, strict=True)}


def summary(checks: Sequence[GraphCheck]) -> dict[str, dict[str, float]]:
    """The worst case of every graph, for the manifest."""
    worst: dict[str, dict[str, float]] = {}
    for check in checks:
        entry = worst.setdefault(
            check.graph, {"max_abs": 0.0, "max_rel": 0.0, "tolerance": check.tolerance}
        )
        entry["max_abs"] = max(entry["max_abs"], check.max_abs)
        entry["max_rel"] = max(entry["max_rel"], check.max_rel)
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
