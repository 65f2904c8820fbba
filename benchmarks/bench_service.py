"""`clipsam serve` under twice the requests that it can answer, beside `inspect_many`.

python benchmarks/bench_service.py bundles/tiny examples/images --seconds 600    # twelve minutes
python benchmarks/bench_service.py bundles/tiny examples/images --seconds 60 --direct 20

In one run: first `inspect_many` alone, which says what twice is; then the service; then
`inspect_many` again. Requests come at fixed times, whether earlier ones were answered or not, as
from many cameras that know nothing of each other; nobody waits as `Retry-After` asks. The clients
share the machine with the service, and their own CPU time is printed. Exit code 1 where a request
got no answer, or another one than 200 or 429.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
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

LATE = 0.5  # seconds after which a request was not sent when it should have been
_IDLE = 5.0  # seconds for which a connection is kept; the service closes silent ones after ten
NO_ANSWER = 0  # beside the HTTP statuses


class Clients:
    """Threads that send a request every 1 / `rate` seconds for `seconds`, together.

    Attributes:
      statuses: how often each was answered; NO_ANSWER where nothing came.
      accepted: seconds from sending to the verdict, of every request that got one.
      late: requests that no thread was free to send in time.
    """

    def __init__(self, port: int, pictures: list[bytes], rate: float, seconds: float) -> None:
        self.statuses: Counter[int] = Counter()
        self.accepted: list[float] = []
        self.late = 0
        self._port, self._pictures, self._rate, self._seconds = port, pictures, rate, seconds
        self._numbers, self._lock = itertools.count(), threading.Lock()

    def run(self, threads: int, start: float) -> list[threading.Thread]:
        """Start them; `start` as `time.monotonic` has it."""
        started = [threading.Thread(target=self._send, args=(start,)) for _ in range(threads)]
        for thread in started:
            thread.start()
        return started

    def _send(self, start: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            with self._lock:
                number = next(self._numbers)
            due = number / self._rate
            if due >= self._seconds:
                break
            pause = max(0.0, start + due - time.monotonic())
            if pause > _IDLE:
                connection.close()
            time.sleep(pause)
            sent = time.monotonic()
            status = self._ask(connection, self._pictures[number % len(self._pictures)])
            took = time.monotonic() - sent
            with self._lock:
                self.statuses[status] += 1
                self.late += sent - start - due > LATE
                if status == 200:
                    self.accepted.append(took)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, picture: bytes) -> int:
        try:
            connection.request("POST", "/inspect", picture, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            connection.close()  # the next request opens it again
            return NO_ANSWER


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="of requests")
    parser.add_argument("--direct", type=float, default=60, help="seconds of inspect_many, twice")
    parser.add_argument("--places", type=int, default=8, help="`--queue` of the service")
    parser.add_argument("--times", type=float, default=2, help="what it can answer")
    args = parser.parse_args()
    files = [job.source for job in find_jobs([args.images])]
    before = direct(args.bundle, files, args.direct)
    print(f"inspect_many: {before:.2f} parts/s", flush=True)
    pictures = [file.read_bytes() for file in files]
    rate, wrong = served(args, pictures, args.times * before)
    after = direct(args.bundle, files, args.direct)
    print(f"inspect_many again: {after:.2f} parts/s")
    print(f"serve / inspect_many: {rate / ((before + after) / 2):.3f}")
    return 1 if wrong else 0


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


def served(args: argparse.Namespace, pictures: list[bytes], rate: float) -> tuple[float, int]:
    """Print what the service did; parts a second, and how many requests went wrong."""
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
        clients = Clients(port, pictures, rate, args.seconds)
        start, own = time.monotonic(), time.process_time()
        threads = clients.run(2 * args.places + 8, start)
        memory: list[float] = []
        while any(thread.is_alive() for thread in threads):
            memory.append(resident(service.pid))
            time.sleep(1)
        passed, own = time.monotonic() - start, time.process_time() - own
        service.terminate()
        code = service.wait()
        drain.join()
    statuses, total = clients.statuses, sum(clients.statuses.values())
    p50, p99 = np.percentile(clients.accepted, (50, 99))
    tenths = [f"{part.mean():.1f}" for part in np.array_split(memory, 10) if len(part)]
    wrong = total - statuses[200] - statuses[429]
    print(
        f"serve: {statuses[200] / passed:.2f} parts/s of {rate:.2f} sent a second for {passed:.0f} "
        f"s; {total} requests: {statuses[200]} judged, {statuses[429]} told to come later, "
        f"{statuses[NO_ANSWER]} without an answer, {wrong - statuses[NO_ANSWER]} otherwise; "
        f"{clients.late} sent late\n"
        f"accepted: p50 {p50:.2f} s, p99 {p99:.2f} s, at most {max(clients.accepted):.2f} s\n"
        f"memory, mean of each tenth: {', '.join(tenths)} MB; clients took {own / passed:.2f} "
        f"cores; exit code {code}"
    )
    return statuses[200] / passed, wrong + abs(code)


def resident(process: int) -> float:
    """Megabytes of memory of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
