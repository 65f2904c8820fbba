"""SQLite's errors as ours: one sentence that says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from clipsam.runtime.core.errors import DiskFullError, OutputError, StoreError

_FULL = ("database or disk is full", "disk I/O error")


@contextmanager
def sqlite_errors(path: Path) -> Generator[None, None, None]:
    """What SQLite raises within, about the store at `path`, as DiskFullError, OutputError or
    StoreError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if any(text in str(error) for text in _FULL):
            raise DiskFullError(
                f"{path} could not be written ({error}): free some space."
            ) from error
        raise OutputError(
            f"{path} could not be opened or written ({error}): check the path, its "
            "permissions, and what else is writing it."
        ) from error
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # a mistake of ours, not of the file
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path} is damaged or no store ({error}): `sqlite3 STORE .recover` may bring "
            "back what is in it; give another --store meanwhile."
        ) from error
