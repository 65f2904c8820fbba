"""How far a bundle's engines are from float32, on any provider: the gate's measure, as figures.

    python benchmarks/bench_accuracy.py bundles/tiny --provider tensorrt --precision fp16
    python benchmarks/bench_accuracy.py bundles/tiny --provider cuda --precision fp32 fp16
    python benchmarks/bench_accuracy.py bundles/tiny --provider cpu         # does it run at all?

Every graph runs on the inputs of the golden cases, twice, and is compared with what its
float32 graph said; then the three together inspect the golden pictures. Prints tables and refuses
nothing: exit code 0 whatever the figures are, 1 where something could not be opened or run. Needs
neither PyTorch nor onnx. A precision without engines of its own for a graph uses what is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.report import table

from clipsam.export.parity.golden import GoldenOutputs, read_golden
from clipsam.export.parity.inspection import Remembering, compare_picture
from clipsam.export.parity.tensors import compare
from clipsam.export.trt.gate import RUNS
from clipsam.runtime.backends.base import Session
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import PROVIDERS
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.errors import ClipSAMError
from clipsam.runtime.pipeline import ClipSAM

GRAPH_COLUMNS = ("graph", "as", "case", "output", "max_rel", "rms_rel", "within")
WHOLE_COLUMNS = ("picture", "prompts", "mask_iou", "scores", "final_map", "verdict", "within")


def graph_rows(golden: GoldenOutputs, name: str, session: Session) -> list[list[str]]:
    """A row for every output of every golden case of one graph; the worst of its runs."""
    rows = []
    for case in golden.cases_for(name, session.precision):
        found = [session.run(case.feeds) for _ in range(RUNS)]
        for output, expected in case.outputs.items():
            checks = [
                compare(name, case.name, output, expected, one[output], session.precision)
                for one in found
            ]
            worst = max(checks, key=lambda check: check.rms_rel)
            figures = [f"{worst.max_rel:.1e}", f"{worst.rms_rel:.1e}"]
            within = "yes" if all(check.passed for check in checks) else "NO"
            rows.append([name, session.precision, case.name, output, *figures, within])
    return rows


def whole_rows(
    bundle: Bundle, golden: GoldenOutputs, sessions: dict[str, Session], precision: str
) -> list[list[str]]:
    """A row for every golden picture, inspected by the three together."""
    remembering: dict[str, Session] = {n: Remembering(s) for n, s in sessions.items()}
    rows = []
    for picture in golden.pictures_for(precision):
        check = compare_picture(bundle, remembering, picture, precision)
        figures = [f"{check.mask_iou:.4f}", f"{check.scores:.1e}", f"{check.final_map:.1e}"]
        verdict = "same" if check.same_verdict else "OTHER"
        within = "yes" if check.passed else "NO"
        rows.append([check.image, str(check.prompts), *figures, verdict, within])
    return rows


def parse(arguments: Sequence[str] | None = None) -> Any:
    """The command line."""
    parser = command_parser(None, __doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32"])
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    options = parse(arguments)
    try:
        golden = read_golden(options.bundle)
        for precision in options.precision:
            with ClipSAM.open(
                options.bundle, options.provider, options.threads, precision=precision
            ) as model:
                sessions = {name: model.sessions[name] for name in GRAPHS}
                rows = [row for n, s in sessions.items() for row in graph_rows(golden, n, s)]
                whole = whole_rows(model.bundle, golden, dict(sessions), precision)
            print(f"{precision} by {options.provider}, against the golden outputs of float32:")
            print(table(GRAPH_COLUMNS, rows), table(WHOLE_COLUMNS, whole), sep="\n\n", end="\n\n")
    except ClipSAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
