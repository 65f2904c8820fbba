"""One output of a graph against float32's: the measure that builds and boxes share.

No torch and no onnx in here: an engine is judged by it where neither is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.precisions.recipes import TOLERANCES
from clipsam.runtime.manifest import FLOAT32

# Outputs that are vectors of length 1, by which distances are taken.
_DIRECTIONS = ("tokens",)


@dataclass(frozen=True)
class GraphCheck:
    """One output of one graph on one input, against float32."""

    precision: str
    graph: str
    case: str
    output: str
    max_abs: float
    max_rel: float  # relative to the largest absolute value of float32's output
    rms_rel: float  # root mean square, relative to the output's
    tolerance: float  # of max_rel
    rms_tolerance: float
    passed: bool


def compare(
    graph: str,
    case: str,
    output: str,
    expected: NDArray[Any],
    found: NDArray[Any],
    precision: str = FLOAT32,
) -> GraphCheck:
    """Measure one output; a wrong shape or a value that is not finite fails.

    Of directions, the error is half the squared distance from where each should point, 1 - cosine:
    what it adds to a distance.
    """
    limit = TOLERANCES[precision]
    max_abs = max_rel = rms_rel = np.inf
    if expected.shape == found.shape and np.isfinite(found).all():
        error = expected.astype(np.float64) - found
        max_abs = float(np.abs(error).max())
        if output in _DIRECTIONS:
            error = np.square(error).sum(axis=-1) / 2
            largest, square = 1.0, 1.0
        else:
            largest = max(float(np.abs(expected).max()), 1e-12)
            square = max(float(np.square(expected, dtype=np.float64).mean()), 1e-24)
        max_rel = float(np.abs(error).max()) / largest
        rms_rel = float(np.sqrt(np.square(error).mean() / square))
    passed = max_rel <= limit.max_rel and rms_rel <= limit.rms_rel
    return GraphCheck(
        precision, graph, case, output, max_abs, max_rel, rms_rel,
        limit.max_rel, limit.rms_rel, bool(passed),
    )  # fmt: skip


def fault(check: GraphCheck) -> str:
    """What is wrong with an output that did not pass; for use inside a sentence."""
    if not np.isfinite(check.max_abs):
        return "has values that are not numbers, or another shape"
    if check.max_rel > check.tolerance:
        return (
            f"is off by {check.max_rel:.1e} of its largest value ({check.tolerance:.0e} is allowed)"
        )
    return f"is off by {check.rms_rel:.1e} of its mean ({check.rms_tolerance:.0e} is allowed)"
