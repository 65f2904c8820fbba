"""One output of a graph against float32's: the measure that builds and boxes share.

No torch and no onnx in here: an engine is judged by it where neither is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.precisions.recipes import TOLERANCES
from clipsam.runtime.manifest import FLOAT32

# Vectors of one length: an error is that of a direction, and each of their values is small.
_LENGTH = {"tokens": 1.0}


@dataclass(frozen=True)
class GraphCheck:
    """One output of one graph on one input, against float32."""

    precision: str
    graph: str
    case: str
    output: str
    max_abs: float
    max_rel: float  # relative to the largest absolute value of float32's output, or its length
    rms_rel: float  # root mean square, relative to the output's
    tolerance: float  # of max_rel
    rms_tolerance: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """For `parity.json`."""
        return asdict(self)


def compare(
    graph: str,
    case: str,
    output: str,
    expected: NDArray[Any],
    found: NDArray[Any],
    precision: str = FLOAT32,
) -> GraphCheck:
    """Measure one output; a wrong shape or a value that is not finite fails.

    One that is kept in half may round to the next value, whatever computed it.
    """
    tolerance = TOLERANCES[precision]
    step = float(np.finfo(np.float16).eps) if expected.dtype == np.float16 else 0.0
    max_limit, rms_limit = max(tolerance.max_rel, step), max(tolerance.rms_rel, step / 4)
    max_abs = max_rel = rms_rel = np.inf
    if expected.shape == found.shape and np.isfinite(found).all():
        error = expected.astype(np.float64) - found
        max_abs = float(np.abs(error).max())
        largest = _LENGTH.get(output, float(np.abs(expected).max()))
        max_rel = max_abs / max(largest, 1e-12)
        square = float(np.square(expected, dtype=np.float64).mean())
        rms_rel = float(np.sqrt(np.square(error).mean() / max(square, 1e-24)))
    passed = max_rel <= max_limit and rms_rel <= rms_limit
    return GraphCheck(
        precision, graph, case, output, max_abs, max_rel, rms_rel,
        max_limit, rms_limit, bool(passed),
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
