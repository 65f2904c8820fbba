"""A connection to a plant's PostgreSQL, and its errors as ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipsam.runtime.core.errors import (
    MissingBackendError,
    OptionError,
    StoreError,
    UnreachableError,
)

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

_SCHEMES = ("postgresql://", "postgres://")
# A cable that was pulled is noticed within a minute or two on both sides. libpq's words.
_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
    "application_name": "clipsam",
}
_SESSION = (
    "SET timezone = 'UTC'",
    "SET client_min_messages = 'warning'",
    "SET lock_timeout = '30s'",
    "SET idle_in_transaction_session_timeout = '2min'",
)


def is_address(text: str) -> bool:
    """Whether `text` is the address of a PostgreSQL database rather than a path."""
    return text.startswith(_SCHEMES)


def shown(address: str) -> str:
    """An address for people, without user and password. Raises OptionError, MissingBackendError."""
    parts = _parts(address)
    port = f":{parts['port']}" if "port" in parts else ""
    return f"postgresql://{parts.get('host', '')}{port}/{parts.get('dbname', '')}"


@contextmanager
def connected(address: str) -> Generator[Connection, None, None]:
    """A connection in autocommit mode to `address`, as libpq reads it.

    Raises UnreachableError where it cannot be used now, also for what fails within; StoreError for
    what will not mend itself; OptionError for a wrong address; MissingBackendError.
    """
    place, parts = shown(address), _parts(address)
    psycopg = _psycopg()
    try:
        with psycopg.connect(**{**_DEFAULTS, **parts}, autocommit=True) as connection:
            for statement in _SESSION:
                connection.execute(statement)
            yield connection
    except (psycopg.OperationalError, psycopg.InternalError) as error:  # a standby is read-only
        raise UnreachableError(
            f"{place} cannot be used now ({first_line(error)}): try again, or check address and "
            "password."
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreError(
            f"{place} does not let this user do that ({first_line(error)}): have the "
            "database's owner run it once, and grant what docs/fleet.md lists."
        ) from error
    except psycopg.Error as error:
        raise StoreError(
            f"{place} refused a statement ({first_line(error)}): its tables in the schema "
            "clipsam are not as this version of clipsam left them."
        ) from error


def _parts(address: str) -> dict[str, Any]:
    psycopg = _psycopg()
    try:
        return dict(psycopg.conninfo.conninfo_to_dict(address))
    except (psycopg.Error, UnicodeError):  # whose words may hold the password
        raise OptionError(
            "The address of the database cannot be read: write postgresql://user@host/database, "
            "and a %, / or @ within a password as %25, %2F, %40; or leave it to ~/.pgpass."
        ) from None


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise MissingBackendError(
            "A PostgreSQL database needs psycopg: pip install 'clipsam[postgres]'."
        ) from error
    return psycopg


def first_line(error: Exception) -> str:
    """The first line of what the server or libpq said."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
