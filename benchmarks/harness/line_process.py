"""The tasks of `bench_line.py` in processes of their own: cold start, and peak of memory.

Their imports are the user's own: what is needed to inspect a part comes first and is timed; how the
parts are planted is imported after that.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def cold_start(
    *, threads: int | None, started: float, opened: list[Any], boxes: int, folder: str
) -> dict[str, float]:
    """Seconds from the start of the process to each step, and its CPU seconds until the first
    verdicts. `opened` are bundle, provider and precision."""
    found: dict[str, float] = {}

    def note(name: str) -> None:
        found[name] = time.monotonic() - started

    note("python_s")
    from clipsam.runtime import ClipSAM, read_image

    note("imported_s")
    bundle, provider, precision = opened
    with ClipSAM.open(bundle, provider, threads, precision) as model:
        note("opened_s")
        from harness.line_parts import plant

        planted = plant(model, boxes)
        planting = time.monotonic() - started - found["opened_s"]  # no part of a start
        for kind in ("good", "defective"):
            planted.inspect(read_image(Path(folder) / f"{kind}-0.jpg"))
            note(f"first_{kind}_s")
            found[f"first_{kind}_s"] -= planting
            found[f"cpu_first_{kind}_s"] = time.process_time()
    return found


def inspect_all(
    *,
    threads: int | None,
    started: float,
    opened: list[Any],
    boxes: int,
    folder: str,
    parts: int,
    line: bool,
) -> dict[str, float]:
    """Inspect parts, every other one defective, one by one or by `inspect_many`."""
    from clipsam.runtime import ClipSAM, read_image
    from harness.line_parts import plant, schedule

    bundle, provider, precision = opened
    with ClipSAM.open(bundle, provider, threads, precision) as model:
        planted = plant(model, boxes)
        paths = schedule(Path(folder), parts, 50)
        if line:
            for part in planted.inspect_many(paths):
                part.result()
        else:
            for path in paths:
                planted.inspect(read_image(path))
    return {}
