"""Malformed requests to a running `clipsam serve`: no mistake of it, and nothing left behind.

    python tests/fuzz/abuse.py                         10,000 requests of ten kinds
    python tests/fuzz/abuse.py --count 500 --seed 7    fewer, and others

Request N of a seed is always the same one. The service is a process of its own on the toy bundle,
with narrow bounds. Every kind has the statuses that may answer it; "" is no answer, which only
requests that do not end, or whose client is gone, may get. After them memory, open files and
threads of the service are what they were after the first half, and it judges as before.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `support`

from support.bad_requests import damaged, head, png_claiming
from support.service import multipart, png
from support.toy_bundle import bright_square, build_toy_bundle

WORKERS, PLACES = 8, 16  # so that a place is nearly always free: 429 would hide what follows it
BODY_SECONDS = 0.3
MOST_MB, MOST_FILES, MOST_THREADS = 5, 2, 2  # more than before the second half
PICTURE = png(bright_square())


def _form(draw: random.Random) -> tuple[str, bytes]:
    return multipart(PICTURE, category=draw.choice(("bottle", "object")), include="map")


def _whole(kind: str, body: bytes, path: str = "/inspect") -> bytes:
    return head(f"Content-Length: {len(body)}", kind, path) + body


def truncated_form(draw: random.Random) -> bytes:
    """A form that ends early, its length being that of what is there."""
    kind, body = _form(draw)
    # Its last line ends in four bytes that are not missed: all before is the form.
    return _whole(kind, body[: draw.randrange(len(body) - 4)])


def wrong_form(draw: random.Random) -> bytes:
    """A form without its picture, with another edge, with a hundred fields."""
    kind, body = _form(draw)
    return draw.choice(
        (
            _whole("multipart/form-data", body),
            _whole("multipart/form-data; boundary=" + "x" * draw.randrange(1, 200), body),
            _whole(kind, body.replace(b'name="image"', b'name="picture"')),
            _whole(*multipart(PICTURE, **{f"field{n}": "x" for n in range(100)})),
        )
    )


def wrong_type(draw: random.Random) -> bytes:
    """A body of another type, or of none that is one."""
    kind = draw.choice(("text/html", "application/json", "multipart/mixed", "a/b/c", "\x01", "é"))
    return _whole(kind, draw.choice((PICTURE, b"{}", b"")))


def bomb(draw: random.Random) -> bytes:
    """A small file that says that it is huge."""
    return _whole(
        "image/png", png_claiming(draw.randrange(400, 1 << 16), draw.randrange(400, 1 << 16))
    )


def too_large(draw: random.Random) -> bytes:
    """A body over the bound, by its head or only on its way."""
    if draw.random() < 0.5:
        return head(f"Content-Length: {draw.randrange(200_001, 1 << 62)}")
    piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    return head("Transfer-Encoding: chunked") + piece * 16 + b"0\r\n\r\n"


def slow_body(draw: random.Random) -> bytes:
    """A body that stops coming."""
    return head(f"Content-Length: {len(PICTURE)}") + PICTURE[: draw.randrange(len(PICTURE))]


def aborted(draw: random.Random) -> bytes:
    """A request that is cut off anywhere; its client leaves at once."""
    whole = _whole(*_form(draw))
    return whole[: draw.randrange(1, len(whole))]


def scrambled(draw: random.Random) -> bytes:
    """Bytes changed, cut out and doubled, in the head as well."""
    return damaged(draw.choice((_whole(*_form(draw)), _whole("image/png", PICTURE))), draw)


def broken_picture(draw: random.Random) -> bytes:
    """Bits flipped within the picture, or a file cut off."""
    data = bytearray(PICTURE)
    for _ in range(3):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return _whole("image/png", bytes(data[: draw.choice((len(data), draw.randrange(len(data))))]))


def broken_tensors(draw: random.Random) -> bytes:
    """A request of the Open Inference Protocol that does not fit together."""
    image: dict[str, Any] = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, 4, 4, 3],
        "data": [0] * 48,
    }
    odd: Any = draw.choice((None, -1, [], "x", {}, [1 << 40] * 8, 1e999, "UINT9", [0, 0, 0, 3]))
    image[draw.choice(list(image))] = odd
    body = json.dumps({"inputs": [image, *([image] if draw.random() < 0.2 else [])]}).encode()
    return _whole("application/json", damaged(body, draw) if draw.random() < 0.3 else body,
                  "/v2/models/clipsam/infer")  # fmt: skip


_BUSY = {"429", "408"}  # may answer anything: no place is free, or this machine was slow to send
# Each with what else may answer it. A changed byte may leave a request as good as it was, or make
# it one of another address.
_REFUSED = {"400", "413", "415", "422"}
KINDS: dict[Callable[[random.Random], bytes], set[str]] = {
    truncated_form: {"400", "422"},
    wrong_form: {"400", "422", "200"},
    wrong_type: {"400", "415", "422"},
    bomb: {"422"},
    too_large: {"413"},
    slow_body: set(),
    aborted: {""},
    scrambled: {*_REFUSED, "200", "401", "403", "404", "405", "421", ""},
    broken_picture: {"200", "422"},
    broken_tensors: {"400", "422", "200"},
}


def send(port: int, make: Callable[[random.Random], bytes], seed: str) -> str:
    """The status that answers a request, "" for none."""
    draw = random.Random(seed)
    request = make(draw)
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with suppress(ConnectionError):  # refused while it was sent: its answer may be there
            connection.sendall(request)
        if make is aborted:
            if draw.random() < 0.5:  # reset instead of close
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return ""
        if make is scrambled:
            connection.settimeout(2 * BODY_SECONDS)  # one without an end waits for nothing more
        with suppress(ConnectionError, TimeoutError):
            while piece := connection.recv(65536):
                found += piece
    return found[9:12].decode("latin-1")


def footprint(process: int) -> tuple[float, int, int]:
    """(MB of memory, open files, threads) of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    values = dict(re.findall(r"^(\w+):\s+(\d+)", text, re.M))
    return (
        int(values["VmRSS"]) / 1024,
        len(list(Path(f"/proc/{process}/fd").iterdir())),
        int(values["Threads"]),
    )


def settled(port: int, process: int) -> tuple[float, int, int]:
    """The footprint once nothing is under way."""
    good = _whole("image/png", PICTURE)
    for _ in range(100):
        status = send(port, lambda _: good, "")
        time.sleep(0.05)
    assert status == "200", f"it no longer judges: {status}"
    return footprint(process)


def main() -> int:
    """Send, count, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bundle = build_toy_bundle(Path(work) / "bundle")
        command = [sys.executable, "-m", "clipsam.runtime.cli", "serve", str(bundle), "--port", "0"]
        command += ["--uncalibrated", "--queue", str(PLACES), "--body-timeout", f"{BODY_SECONDS}s"]
        command += ["--max-body", "200kB", "--max-pixels", "100000"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
            try:
                return attack(service, args.count, args.seed)
            finally:
                service.terminate()


def attack(service: subprocess.Popen[str], count: int, seed: int) -> int:
    """Returns 1 where anything was wrong."""
    assert service.stderr is not None
    port, mistakes = 0, list[str]()
    for line in service.stderr:
        if found := re.search(r"listens on http://.*:(\d+)", line):
            port = int(found[1])
        if '"state": "ready"' in line:
            break

    def read(log: Iterable[str]) -> None:
        with suppress(ValueError):  # it is closed with the service
            for line in log:
                if '"error"' in line or re.search(r'"status": 5', line):
                    mistakes.append(line)

    threading.Thread(target=read, args=(service.stderr,), daemon=True).start()
    kinds, answers = list(KINDS), Counter[tuple[str, str]]()
    start = time.monotonic()

    def one(number: int) -> None:
        make = kinds[number % len(kinds)]
        answers[make.__name__, send(port, make, f"{seed} {number}")] += 1

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(one, range(count // 2)))
        before = settled(port, service.pid)
        list(pool.map(one, range(count // 2, count)))
    took = time.monotonic() - start
    after = settled(port, service.pid)
    wrong = len(mistakes)
    for make, allowed in KINDS.items():
        seen = {status: n for (name, status), n in sorted(answers.items()) if name == make.__name__}
        bad = {status: n for status, n in seen.items() if status not in allowed | _BUSY}
        wrong += sum(bad.values())
        listed = ", ".join(f"{status or 'none'} {n}" for status, n in seen.items())
        print(f"{make.__name__:15} {listed}" + (f"   WRONG: {bad}" if bad else ""))
    for line in mistakes[:5]:
        print(f"in its log: {line.strip()[:2000]}")
    grown = [now - then for now, then in zip(after, before, strict=True)]
    left = sum(g > most for g, most in zip(grown, (MOST_MB, MOST_FILES, MOST_THREADS), strict=True))
    print(
        f"{count} requests of seed {seed} in {took:.0f} s, {wrong} wrong; after half of them and "
        f"after all: {before[0]:.1f} and {after[0]:.1f} MB, {before[1]} and {after[1]} open files, "
        f"{before[2]} and {after[2]} threads"
    )
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
