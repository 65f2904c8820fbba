"""uvicorn, with what it leaves open: heads that never come, and signals."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.service.guard import write_log
from clipsam.runtime.service.settings import Settings

_HEAD_SECONDS = 10.0  # in which a request's head has to come


class Server(uvicorn.Server):
    """Stops well at the first SIGTERM or Ctrl-C, at once at the second; `stop` does the first."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=int(settings.timeout + settings.body_timeout) + 1,
            )
        )

    def stop(self) -> None:
        """Take no more requests, and end when all are answered. From any thread."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's own would raise the signal once more when all is done."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (int(signal.SIGTERM), int(signal.SIGINT)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: object) -> None:
        """A signal."""
        self.force_exit = self.should_exit
        self.should_exit = True


class _Protocol(H11Protocol):
    """Closes connections whose next request does not begin; uvicorn would keep them for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._expect_head()

    def on_response_complete(self) -> None:
        """It got its answer."""
        super().on_response_complete()
        self._expect_head()

    def _expect_head(self) -> None:
        self.loop.call_later(_HEAD_SECONDS, self._close_if_silent, self.cycle)

    def _close_if_silent(self, last: object) -> None:
        if self.cycle is last and not self.transport.is_closing():
            self.transport.close()


class _AsJson(logging.Handler):
    """uvicorn's own words, as lines of our log."""

    def emit(self, record: logging.LogRecord) -> None:
        extra: Mapping[str, str] = {}
        if record.exc_info:
            extra = {"error": logging.Formatter().formatException(record.exc_info)}
        write_log("server", record.levelname.lower(), message=record.getMessage(), **extra)


@contextmanager
def logged_as_json() -> Generator[None, None, None]:
    """Warnings of uvicorn and of `clipsam` as lines of JSON meanwhile."""
    # It tells of every malformed body, which has its line with status 400 already.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    handler = _AsJson(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("uvicorn", "clipsam")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any. Raises OptionError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        try:
            if hasattr(signal, "SIGKILL"):  # elsewhere, two could then share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(256)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise OptionError(
            f"{host} port {port} cannot be listened on ({error.strerror or error}): give another "
            "--host or --port."
        ) from error
    return listener
