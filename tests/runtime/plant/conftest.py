"""A PostgreSQL server of the tests' own, and an empty database on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.postgres import Server, binaries, running


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    if (found := binaries()) is None:
        pytest.skip("PostgreSQL is not installed: apt install postgresql")
    with running(found) as server:
        yield server


@pytest.fixture
def plant(server: Server) -> Server:
    """The server with an empty database."""
    server.sql("DROP SCHEMA IF EXISTS clipsam CASCADE")
    return server
