"""What stands before every request: who may ask, how large and how slow a body may be, and what is
written down about it."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sys
import time
import traceback
import uuid
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipsam.runtime.core.errors import ClipSAMError
from clipsam.runtime.service.metrics import Metrics
from clipsam.runtime.service.problems import (
    BAD_REQUEST,
    FORBIDDEN,
    INTERNAL,
    MISDIRECTED,
    SLOW_BODY,
    TOO_LARGE,
    UNAUTHORIZED,
    Problem,
    problem_of,
)
from clipsam.runtime.service.settings import Settings, is_loopback

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # these, and /page/, need no token
_DRAIN = 1.0  # seconds in which the rest of a refused body is read away, so that its sender listens
_CLOSED_BY_CLIENT = 499  # in log and metrics alone: nobody is there to read it
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, start = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        scope["state"] = {  # what handlers may read and add to
            "request_id": given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
            "began": start,
            "log": {},
        }
        body = _Body(receive, headers, self._settings, start)
        answer = _Answer(send, body, scope["state"]["request_id"])
        log: dict[str, Any] = scope["state"]["log"]
        try:
            try:
                self._check(scope, headers)
                body.check_length()
                await self._app(scope, body.receive, answer.send)
            except Problem as problem:
                await answer.problem(problem, scope, receive)
            except ClipSAMError as error:
                await answer.problem(problem_of(error), scope, receive)
        except (ClientDisconnect, ConnectionError):
            answer.status = answer.status or _CLOSED_BY_CLIENT
        except Exception:
            log["error"] = traceback.format_exc()
            wrong = Problem(INTERNAL, "This is a mistake of the service; its log says more.")
            with suppress(Exception):
                await answer.problem(wrong, scope, receive)
        finally:
            self._note(scope, answer.status or _CLOSED_BY_CLIENT, time.monotonic() - start, log)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise Problem for a request that nobody here meant to send.

        A page of another site that is open in a browser on this machine can send requests to
        localhost, directly or under a name of its own that it lets point here.
        """
        host = headers.get("host", "")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._settings.local and not is_loopback(name):
            raise Problem(MISDIRECTED, "Ask for localhost: the service is bound to this machine.")
        if scope["method"] not in ("GET", "HEAD"):
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            own = site in ("same-origin", "none") if site else (
                origin is None or urlsplit(origin).netloc == host
            )  # fmt: skip
            if not own:
                raise Problem(FORBIDDEN, "Pages of other sites may not use this service.")
        path = scope["path"]
        if self._settings.token is None or path in _OPEN or path.startswith("/page/"):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode(), self._settings.token.encode())
        if scheme.lower() != "bearer" or not right:
            raise Problem(
                UNAUTHORIZED,
                "Send the header `Authorization: Bearer TOKEN` with the service's token.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _note(self, scope: Scope, status: int, seconds: float, log: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.answered(route, status, seconds)
        write_log(
            "request",
            request_id=scope["state"]["request_id"],
            client=(scope.get("client") or ("",))[0],
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(seconds * 1e3, 1),
            **log,
        )


class _Body:
    """The request's body on its way in, within bounds of bytes and seconds."""

    def __init__(
        self, receive: Receive, headers: Headers, settings: Settings, start: float
    ) -> None:
        self._receive, self._headers, self._settings = receive, headers, settings
        self._until, self._size = start + settings.body_timeout, 0
        length = headers.get("content-length", "0")
        self.complete = length == "0" and "transfer-encoding" not in headers

    def check_length(self) -> None:
        """Refuse a body by what its head claims, before any of it is read."""
        length = self._headers.get("content-length", "0")
        if not length.isdecimal():
            raise Problem(BAD_REQUEST, "Content-Length must be a number of bytes.")
        if len(length) > 18 or int(length) > self._settings.max_body:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece, or word that the client is gone."""
        if self.complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._until - time.monotonic())
        except asyncio.TimeoutError:
            raise Problem(
                SLOW_BODY,
                f"The body must arrive within {self._settings.body_timeout:g} s: send a smaller "
                "picture, or have --body-timeout raised.",
            ) from None
        self._note(message)
        if self._size > self._settings.max_body:
            raise self._too_large()
        return message

    async def drain(self) -> None:
        """Read away what a refused request still sends, for a moment."""
        until = time.monotonic() + _DRAIN
        if "expect" in self._headers:  # it waits for a word before it sends
            return
        with suppress(asyncio.TimeoutError):
            while not self.complete and self._size <= self._settings.max_body:
                self._note(await asyncio.wait_for(self._receive(), until - time.monotonic()))

    def _note(self, message: Message) -> None:
        self._size += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)

    def _too_large(self) -> Problem:
        return Problem(
            TOO_LARGE,
            f"A body may have {self._settings.max_body:,} bytes: send a smaller picture, or have "
            "--max-body raised.",
        )


class _Answer:
    """The answer on its way out, with the headers that every one has."""

    def __init__(self, send: Send, body: _Body, request_id: str) -> None:
        self._send, self._body, self._request_id = send, body, request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        """Send a piece."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in {**_HEADERS, "x-request-id": self._request_id}.items():
                headers.setdefault(name, value)
            if not self._body.complete:
                headers["connection"] = "close"
                await self._body.drain()
        await self._send(message)

    async def problem(self, problem: Problem, scope: Scope, receive: Receive) -> None:
        """Answer with a problem, unless an answer has begun."""
        if not self.status:
            await problem.response(self._request_id)(scope, receive, self.send)


def write_log(event: str, level: str = "info", **values: Any) -> None:
    """A line of JSON on stderr."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time() % 1 * 1e3:03.0f}Z"
    line = json.dumps({"at": at, "level": level, "event": event, **values}, default=str)
    with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop
        print(line, file=sys.stderr, flush=True)
