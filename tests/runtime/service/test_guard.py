"""Who may ask, and what a hostile or broken client can do: nothing that lasts."""

from __future__ import annotations

import gc
import random
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from support import bad_requests
from support.bad_requests import damaged, png_claiming
from support.service import Service, multipart, png, serving, until
from support.toy_bundle import bright_square

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service.settings import read_token

BAD = png(bright_square())
TOKEN = "0123456789abcdef-secret"


@pytest.fixture(scope="module")
def small(model: ClipSAM) -> Iterator[Service]:
    """A service with narrow bounds."""
    with serving(
        model, queue=4, max_body=100_000, max_pixels=100_000, body_timeout=0.3, token=TOKEN
    ) as service:
        service.headers["Authorization"] = f"Bearer {TOKEN}"
        yield service


def read_all(connection: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionResetError, TimeoutError):
        while piece := connection.recv(65536):
            found += piece
    return found


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", "Bearer ü"])
def test_without_the_token_only_health_and_page_answer(small: Service, given: str | None) -> None:
    headers = {"Authorization": given or ""}
    for method, path in (("POST", "/inspect"), ("GET", "/about"), ("GET", "/metrics")):
        answer = small.send(method, path, BAD if method == "POST" else None, headers)
        assert (answer.status, answer.json["type"]) == (401, "urn:clipsam:problem:unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert small.send("GET", "/v2/health/ready", headers=headers).status == 200


def test_with_the_token_it_works(small: Service) -> None:
    assert small.inspect(BAD).json["verdict"] == "anomalous"


@pytest.mark.parametrize(
    ("text", "word"), [(None, "cannot be read"), ("short", "16"), ("a b" * 20, "16")]
)
def test_a_token_file_must_hold_a_token(tmp_path: Path, text: str | None, word: str) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(OptionError, match=word):
        read_token(file)
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, 200),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
    ],
)
def test_pages_of_other_sites_are_kept_out(
    service: Service, headers: dict[str, str], status: int
) -> None:
    answer = service.send("POST", "/inspect", BAD, {"Content-Type": "image/png", **headers})
    assert answer.status == status
    assert "access-control-allow-origin" not in answer.headers
    asked = service.send("OPTIONS", "/inspect", headers={"Origin": "https://evil.example"})
    assert asked.status in (403, 405)


def test_a_body_that_is_too_large_is_refused_by_its_head_or_on_its_way(small: Service) -> None:
    large = small.inspect(b"x" * 100_001)
    assert (large.status, large.json["type"]) == (413, "urn:clipsam:problem:body-too-large")
    with small.raw() as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        for _ in range(12):
            connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert b" 413 " in read_all(connection)[:20]
    until(lambda: small.judge.taken == 0)


def test_a_bomb_is_refused_before_it_is_decoded(small: Service) -> None:
    for width, height in ((60_000, 60_000), (1000, 101)):
        answer = small.inspect(png_claiming(width, height))
        assert (answer.status, answer.json["type"]) == (422, "urn:clipsam:problem:image")
        assert "over the limit" in answer.json["detail"]


def test_a_slow_body_is_given_up_and_its_place_is_free_again(small: Service) -> None:
    with small.raw() as connection:
        connection.sendall(head("Content-Length: 5000") + b"abc")
        assert b" 408 " in read_all(connection)[:20]
    until(lambda: small.judge.taken == 0)


def test_connections_that_break_anywhere_leave_nothing(small: Service) -> None:
    kind, body = multipart(BAD)
    whole = head(f"Content-Length: {len(body)}", kind) + body
    draw = random.Random(7)
    for _ in range(60):
        with small.raw() as connection:
            connection.sendall(whole[: draw.randrange(len(whole))])
            if draw.random() < 0.5:  # reset instead of close
                connection.setsockopt(1, 13, struct.pack("ii", 1, 0))
    until(lambda: small.inspect(BAD).status == 200)  # 429 while some still wait to be taken
    until(lambda: small.judge.taken == 0)


def test_no_damaged_request_is_answered_with_a_mistake_of_the_service(small: Service) -> None:
    """Requests with bytes changed, cut out and doubled."""
    kind, body = multipart(BAD, category="bottle", include="map")
    seeds = [
        head(f"Content-Length: {len(body)}", kind) + body,
        head(f"Content-Length: {len(BAD)}", "image/png") + BAD,
        head("Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    ]
    draw = random.Random(5)
    threads, files = threading.active_count(), descriptors()

    def send(data: bytes, timeout: float = 0.6) -> bytes:
        with small.raw() as connection:
            connection.settimeout(timeout)  # one without an end waits for nothing more
            connection.sendall(data)
            return read_all(connection)[9:12]

    with ThreadPoolExecutor(8) as pool:
        requests = [damaged(seeds[number % 3], draw) for number in range(600)]
        statuses = set(pool.map(send, requests))
    assert statuses <= {b"", b"200", b"400", b"401", b"404", b"405", b"408", b"413", b"415",
                        b"421", b"422", b"403", b"429"}, statuses  # fmt: skip
    assert {b"400", b"422"} <= statuses
    # Undamaged they are understood, however slow the machine is.
    assert [send(seed, timeout=60) for seed in seeds] == [b"200", b"200", b"422"]
    until(lambda: small.judge.taken == 0)
    gc.collect()
    until(lambda: descriptors() <= files + 2)
    until(lambda: threading.active_count() <= threads + 40)  # the pool's, which stay
    assert small.inspect(BAD).status == 200


def test_damaged_pictures_are_said_to_be_damaged(small: Service) -> None:
    draw = random.Random(3)
    for _ in range(200):
        data = bytearray(BAD)
        for _ in range(3):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        answer = small.inspect(bytes(data))
        assert answer.status in (200, 422)


def head(length: str, kind: str = "image/png") -> bytes:
    return bad_requests.head(length, kind, token=TOKEN)


def descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
