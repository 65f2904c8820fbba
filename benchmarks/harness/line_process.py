"""A process of `bench_line.py`: its cold start, or its peak of memory. Prints a JSON object.

Its imports are the user's own: what is needed to inspect a part comes first and is timed; how the
parts are planted is imported after that.
"""

from __future__ import annotations

import json
import sys
import time

JOB = json.loads(sys.argv[1])


def main() -> dict[str, float]:
    """Seconds since the process was started; megabytes."""
    found: dict[str, float] = {}

    def note(name: str) -> None:
        found[name] = time.monotonic() - JOB["started"]

    note("python_s")
    from clipsam.runtime import ClipSAM, read_image

    note("imported_s")
    with ClipSAM.open(JOB["bundle"], JOB["provider"], JOB["threads"], JOB["precision"]) as model:
        note("opened_s")
        sys.path.insert(0, str(HERE.parent))
        from harness.line_parts import plant, schedule

        folder = Path(JOB["folder"])
        planted = plant(model, JOB["boxes"])
        if JOB["kind"] == "cold":
            note("planted_s")
            planted.inspect(read_image(folder / "good-0.jpg"))
            note("first_good_s")
            found["cpu_first_good_s"] = time.process_time()
            planted.inspect(read_image(folder / "defective-0.jpg"))
            note("first_defective_s")
            # What the planting itself took is no part of a start.
            spent = found.pop("planted_s") - found["opened_s"]
            for name in ("first_good_s", "first_defective_s"):
                found[name] -= spent
            found["cpu_first_defective_s"] = time.process_time()
        else:
            paths = schedule(folder, JOB["parts"], 50)
            if JOB["kind"] == "line":
                for part in planted.inspect_many(paths):
                    part.result()
            else:
                for path in paths:
                    planted.inspect(read_image(path))
            found.clear()
    found["peak_rss_mb"] = peak_rss() / 1e6
    return found


def peak_rss() -> int:
    """Bytes that this process held at most. (`getrusage` would count its parent's before exec.)"""
    status = Path("/proc/self/status").read_text()  # Linux
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    from pathlib import Path

    HERE = Path(__file__).resolve().parent
    print(json.dumps(main()))
