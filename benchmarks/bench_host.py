"""What the host does for a part outside its engines: milliseconds at 1, 5 and 12 megapixels.

    OMP_NUM_THREADS=1 python benchmarks/bench_host.py
    OMP_NUM_THREADS=1 python benchmarks/bench_host.py --boxes 16

The engines are stand-ins that answer at once (`harness/host.py`), so no bundle and no GPU is
needed, and what is measured is what a fast GPU would wait for. "Before" resizes the picture on the
host, "after" hands it to the graph `prepare`; what that takes on a device is not in here. "The
verdict alone" is `inspect(..., deadline_ms=0)`, which leaves SAM out. The least CPU time
of one thread, which other work on the machine changes less than the wall clock; Markdown on stdout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import cv2
from harness.host import SIZES, answering, steps, times_ms
from harness.machine import machine
from harness.planted import MOST_BOXES, picture
from harness.report import show_facts, table

from clipsam.runtime.commands.parser import command_parser

WAYS = {"before": False, "after": True}


def cpu_ms(call: Callable[[], object]) -> str:
    """The least CPU time of a call."""
    return f"{min(times_ms(call, time.process_time)):.1f}"


def whole(name: str, boxes: int) -> dict[str, str]:
    """Whole inspections of a picture of this size: row -> milliseconds before and after."""
    image = picture(*SIZES[name])
    found: dict[str, list[str]] = {}
    for prepares in WAYS.values():
        model = answering(*SIZES[name], boxes, prepares=prepares)
        good = answering(*SIZES[name], 0, prepares=prepares)
        for row, call in (
            ("a good part", lambda model=good: model.inspect(image)),
            (f"a defective part, {boxes} boxes", lambda model=model: model.inspect(image)),
            ("the same, the verdict alone",
             lambda model=model: model.inspect(image, deadline_ms=0)),
        ):  # fmt: skip
            found.setdefault(row, []).append(cpu_ms(call))
    return {row: " to ".join(values) for row, values in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = command_parser(None, __doc__)
    parser.add_argument(
        "--boxes", type=int, choices=range(1, MOST_BOXES + 1), default=4, metavar="N",
        help="defects of the defective part (default: 4)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    show_facts(machine(1))
    rows: dict[str, list[str]] = {}
    for name, size in SIZES.items():
        alone = {what: cpu_ms(call) for what, call in steps(*size, args.boxes).items()}
        for what, value in {**alone, **whole(name, args.boxes)}.items():
            rows.setdefault(what, []).append(value)
    print(table(["ms", *SIZES], [[what, *values] for what, values in rows.items()]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
