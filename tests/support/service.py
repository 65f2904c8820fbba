"""A running service on the toy bundle, and a client of the standard library."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service.app import make_app
from clipsam.runtime.service.calibrating import Calibrations
from clipsam.runtime.service.judge import Judge
from clipsam.runtime.service.recorder import Recorder
from clipsam.runtime.service.server import Server, bind
from clipsam.runtime.service.settings import Settings
from clipsam.runtime.station.pictures import Keep
from clipsam.runtime.station.store import Store


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Service:
    """A service that listens on `port` of 127.0.0.1."""

    port: int
    judge: Judge
    server: Server
    store: Store | None
    headers: dict[str, str] = field(default_factory=dict)  # sent with every request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def post_json(self, path: str, value: Any) -> Reply:
        return self.send(
            "POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )

    def inspect(self, picture: bytes, query: str = "", kind: str = "image/png") -> Reply:
        return self.send("POST", f"/inspect{query}", picture, {"Content-Type": kind})

    def upload(self, picture: bytes, name: str = "part.png", **fields: str) -> Reply:
        kind, body = multipart(picture, name, **fields)
        return self.send("POST", "/inspect", body, {"Content-Type": kind})

    def raw(self) -> socket.socket:
        """A connection, for what no client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


def multipart(picture: bytes, name: str = "part.png", **fields: str) -> tuple[str, bytes]:
    """(content type, body) of a form with a file `image`."""
    edge = secrets.token_hex(8)
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
    parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + picture + b"\r\n")
    return f"multipart/form-data; boundary={edge}", b"".join(parts) + f"--{edge}--\r\n".encode()


def png(image: NDArray[np.uint8]) -> bytes:
    """The content of a file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@contextmanager
def serving(
    model: ClipSAM,
    store: Store | None = None,
    keep: Keep | None = None,
    wait: bool = True,
    calibrations: Path | None = None,
    **settings: Any,
) -> Iterator[Service]:
    """Run a service in a thread; `wait` until it is ready."""
    chosen = Settings(**settings)
    judge = Judge(model, chosen.queue, chosen.batch, chosen.max_pixels)
    recorder = Recorder(store, keep or Keep(min_free=0)) if store else None
    listener = bind("127.0.0.1", 0)
    learning = Calibrations(judge, calibrations) if calibrations else None
    server = Server(make_app(judge, chosen, recorder, "1.2.3", learning), chosen)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    judge.start()
    service = Service(listener.getsockname()[1], judge, server, store)
    try:
        if wait:
            until(lambda: service.get("/v2/health/ready").status == 200)
        yield service
    finally:
        server.stop()
        thread.join()
        if learning:
            learning.close()
        judge.close()


def until(condition: Any, seconds: float = 60) -> None:
    """Wait for what a thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
