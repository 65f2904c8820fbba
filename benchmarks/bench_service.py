"""`clipsam serve` under more requests than it can answer, beside `inspect_many` in the same run.

python benchmarks/bench_service.py bundles/tiny examples/images --seconds 60

First `inspect_many` alone, then the service with twice as many clients as it has places, then
`inspect_many` again. Every client sends its next picture when it has an answer, or after what
`Retry-After` says (0.2 s at most, so that the queue is never empty).
"""

from __future__ import annotations

import argparse
import http.client
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import cycle, takewhile
from pathlib import Path

import numpy as np

from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.results.jobs import find_jobs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--places", type=int, default=8)
    args = parser.parse_args()
    files = [job.source for job in find_jobs([args.images])]
    before = direct(args.bundle, files, args.seconds / 2)
    print(f"inspect_many: {before:.2f} parts/s")
    served(args, [file.read_bytes() for file in files])
    after = direct(args.bundle, files, args.seconds / 2)
    print(f"inspect_many again: {after:.2f} parts/s")


def direct(bundle: Path, files: list[Path], seconds: float) -> float:
    """Parts a second of `inspect_many`."""
    with ClipSAM.open(bundle) as model:
        model.warm_up()
        end = time.monotonic() + seconds
        start, count = time.monotonic(), 0
        for seen in model.inspect_many(takewhile(lambda _: time.monotonic() < end, cycle(files))):
            seen.result()
            count += 1
        return count / (time.monotonic() - start)


def served(args: argparse.Namespace, pictures: list[bytes]) -> None:
    """Print what the service did."""
    command = [sys.executable, "-m", "clipsam.runtime.cli", "serve", str(args.bundle)]
    command += ["--uncalibrated", "--port", "0", "--queue", str(args.places)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        port = 0
        for line in service.stderr:
            if found := re.search(r"listens on http://.*:(\d+)", line):
                port = int(found[1])
            if '"state": "ready"' in line:
                break
        drain = threading.Thread(target=lambda log: [None for _ in log], args=(service.stderr,))
        drain.start()
        end, start = time.monotonic() + args.seconds, time.monotonic()
        statuses: Counter[int] = Counter()
        latencies: list[float] = []
        memory: list[tuple[float, float]] = []
        clients = [
            threading.Thread(target=client, args=(port, pictures, end, statuses, latencies))
            for _ in range(2 * args.places)
        ]
        for thread in clients:
            thread.start()
        while any(thread.is_alive() for thread in clients):
            memory.append((time.monotonic() - start, resident(service.pid)))
            time.sleep(1)
        passed = time.monotonic() - start
        service.terminate()
        code = service.wait()
        drain.join()
    p50, p99 = np.percentile(latencies, (50, 99))
    half = [mb for at, mb in memory if at > passed / 2]
    print(
        f"serve: {statuses[200] / passed:.2f} parts/s, answers {dict(statuses)}, accepted p50 "
        f"{p50:.2f} s, p99 {p99:.2f} s; memory {half[0]:.0f} MB at half time, {half[-1]:.0f} MB at "
        f"the end; exit code {code}"
    )


def client(
    port: int, pictures: list[bytes], end: float, statuses: Counter[int], latencies: list[float]
) -> None:
    """One after another, on a connection that is kept; 0 counts requests without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for picture in cycle(pictures):
        start = time.monotonic()
        if start > end:
            break
        try:
            connection.request("POST", "/inspect", picture, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            statuses[0] += 1
            connection.close()
            continue
        statuses[answer.status] += 1
        if answer.status == 200:
            latencies.append(time.monotonic() - start)
        else:
            time.sleep(min(0.2, float(answer.getheader("Retry-After") or 0)))
    connection.close()


def resident(process: int) -> float:
    """Megabytes of memory of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
