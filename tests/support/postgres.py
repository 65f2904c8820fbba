"""A PostgreSQL server for a test: its own folder, port and user."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
_USER = "nobody"  # where the tests run as root, which PostgreSQL refuses
PASSWORD = "s3cret"


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, or None where they are not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else _DEBIAN[::-1]
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


class Server:
    """A server that can be stopped and started; `address` is of its database `plant`."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._bin, self._data, self._log = binaries, folder / "data", folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"postgresql://owner:{PASSWORD}@127.0.0.1:{self.port}/plant"
        secret = folder / "password"
        secret.write_text(PASSWORD)
        self._as = {"user": _USER, "group": "nogroup"} if os.getuid() == 0 else {}
        if self._as:
            for path in (folder, secret):
                shutil.chown(path, **self._as)
        self._run(
            "initdb", "--pgdata", self._data, "--username", "owner", "--pwfile", secret,
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip
        self.start()
        self.sql("CREATE DATABASE plant", "postgres")

    def start(self) -> None:
        options = f"-h 127.0.0.1 -p {self.port} -k '' -F"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", self._log, "-o", options)

    def stop(self) -> None:
        """As a power cut: no connection is told."""
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", "immediate")

    def sql(self, statement: str, database: str = "plant") -> list[tuple[Any, ...]]:
        import psycopg

        address = self.address.removesuffix("plant") + database
        with psycopg.connect(address, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments: object) -> None:
        subprocess.run(
            [self._bin / program, *map(str, arguments)],
            check=True, stdout=subprocess.DEVNULL, cwd="/", **self._as,  # type: ignore[call-overload]
        )  # fmt: skip


@contextmanager
def running(binaries: Path) -> Iterator[Server]:
    # Not below pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="clipsam-postgres-"))
    server = None
    try:
        server = Server(folder, binaries)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder)
