"""The gate: no engine is written before it said what the float32 graph says.

Half-precision SAM encoders that are silently wrong are the field's best known failure: they raise
nothing and look exactly like a bad model. Every fresh engine runs on the bundle's golden cases,
twice each, since a second run may be a replayed CUDA graph; then the three of them as a whole.
No torch, onnx or onnxruntime in here, and no TensorRT: any `Session` can be judged.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping

from clipsam.export.parity.golden import Case
from clipsam.export.parity.inspection import (
    EndToEndCheck,
    Picture,
    Remembering,
    compare_picture,
    faults,
)
from clipsam.export.parity.tensors import GraphCheck, compare, fault
from clipsam.export.precisions.recipes import TOLERANCES
from clipsam.runtime.backends.base import Session
from clipsam.runtime.backends.precision import PRECISIONS, safer_than
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.core.errors import ExportError, SessionError

RUNS = 2


class GateError(ExportError):
    """An engine does not agree with the float32 graph, and was not written.

    Attributes:
      graph: which one; None where each passed alone and only the whole does not.
      precision: that failed.
      safer: the precision to use instead; None when there is none.
      case: the recorded input on which it failed; None where there is no such one.
    """

    def __init__(
        self,
        message: str,
        graph: str | None,
        precision: str,
        safer: str | None,
        case: str | None = None,
    ) -> None:
        super().__init__(message)
        self.graph, self.precision, self.safer, self.case = graph, precision, safer, case


def safer_precision(precision: str, there: Collection[str]) -> str | None:
    """The next safer precision among those that are there; None when there is none."""
    return next((safer for safer in safer_than(precision) if PRECISIONS[safer].there(there)), None)


def check_session(
    graph: str,
    session: Session,
    cases: Iterable[Case],
    precision: str,
    there: Collection[str],
) -> list[GraphCheck]:
    """Hold one engine against the golden outputs of its graph.

    `there` are the precisions that the bundle has the graph in. Raises GateError, naming graph,
    error and the safer precision, at the first output that is not finite or out of tolerance, and
    when there is nothing to compare with.
    """
    checks = []
    for case in cases:
        for _ in range(RUNS):
            found = session.run(case.feeds)
            for output, expected in case.outputs.items():
                check = compare(graph, case.name, output, expected, found[output], precision)
                checks.append(check)
                if not check.passed:
                    raise _refusal(
                        f"The engine of {graph} in {precision} does not agree with the float32 "
                        f"graph: {output} of '{case.name}' {fault(check)}",
                        graph,
                        precision,
                        safer_precision(precision, there),
                        case.name,
                    )
    if not checks:
        raise _refusal(
            f"The bundle has no golden outputs of {graph}, so its engine cannot be judged",
            graph,
            precision,
            None,
        )
    return checks


def check_whole(
    bundle: Bundle,
    sessions: Mapping[str, Session],
    pictures: Iterable[Picture],
    precision: str,
) -> list[EndToEndCheck]:
    """Hold the three engines together against the golden pictures; raises GateError."""
    remembering = {name: Remembering(session) for name, session in sessions.items()}
    safer = safer_precision(precision, bundle.precisions)
    checks = []
    for picture in pictures:
        try:
            check = compare_picture(bundle, remembering, picture, precision)
        except SessionError as error:  # an output that is not finite, for one
            raise _refusal(
                f"The engines in {precision} fail on the picture '{picture.name}' "
                f"({str(error).rstrip('.')})",
                None,
                precision,
                safer,
            ) from error
        checks.append(check)
        if not check.passed:
            raise _refusal(
                f"The engines in {precision} do not agree with the float32 pipeline on the "
                f"picture '{picture.name}': {faults(check)} differs",
                None,
                precision,
                safer,
            )
    if not any(check.prompts for check in checks):
        raise _refusal(
            "No golden picture reaches SAM, so the engines cannot be judged as a whole",
            None,
            precision,
            None,
        )
    return checks


def _refusal(
    problem: str, graph: str | None, precision: str, safer: str | None, case: str | None = None
) -> GateError:
    if safer is not None:
        advice = f"build it with --precision {safer}, or let --fallback do so"
    else:
        advice = "build the bundle again, or use another TensorRT version"
    if case is not None:
        where = shlex.join(["BUNDLE", graph or "", "--precision", precision, "--case", case])
        advice += f"; `clipsam diagnose {where}` finds the layer"
        if TOLERANCES[precision].provisional:
            advice += f" (what is allowed of {precision} is provisional: set on small models)"
    return GateError(f"{problem}; it was not written: {advice}.", graph, precision, safer, case)
