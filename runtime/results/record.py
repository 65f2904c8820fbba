"""`results.jsonl`: one row for every judgement, only ever added to, by one process at a time.

A row is a JSON object: `image` (the picture's name), `stem` (what its three files begin with),
`source` (the picture's path then), `sha256` (of the picture), `settings` (a digest of everything
else that decides the answer), then the fields of `Result`, or `error`, and "not_judged" where the
picture is to blame. What stands is never written again and never removed.

The beginning of a row, with the stem, is written before the picture's files and the rest of it
after them. A process that is killed in between leaves a torn last line; the next one cuts it off
and puts in its place that the picture was not finished, so the files remain known as ours.

Rows are handed to the system at once: killing the process loses none. Once a second and at the end
they are forced to the disk, the pictures' files first, so a power cut loses about one second.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.files import TEMPORARY
from clipsam.runtime.core.lock import try_lock
from clipsam.runtime.core.result import NOT_JUDGED
from clipsam.runtime.results.names import ENDINGS, fold

RESULTS = "results.jsonl"
SYNC_EVERY = 1.0  # seconds
CUT_OFF = "the inspection was cut off before this picture was finished: inspect it again."

_HEAD = re.compile(rb'\{"image": ("(?:[^"\\]|\\.)*"), "stem": ("(?:[^"\\]|\\.)*")')


def digest(*parts: str) -> bytes:
    """16 bytes that stand for these strings."""
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")  # names need not be Unicode
    return hashlib.sha256(joined).digest()[:16]


def settings_digest(settings: Mapping[str, Any]) -> str:
    """16 hex digits for the settings (JSON's types) that decide an answer."""
    return digest(json.dumps(settings, sort_keys=True)).hex()


class Index:
    """What a record holds, as digests: about 300 bytes a row, whatever is in it."""

    def __init__(self) -> None:
        self._stands: set[bytes] = set()
        self._owners: dict[bytes, bytes] = {}  # stem -> picture

    def add(self, row: Mapping[str, Any]) -> None:
        """Learn a row."""
        image, stem = row["image"], row.get("stem")
        if isinstance(stem, str):
            self._owners[digest(fold(stem))] = digest(image)
        # A late part deserves another try, and who asks again wants to know what is not judged.
        if not ("error" in row or row.get("late") or row.get("verdict") == NOT_JUDGED):
            self._stands.add(digest(image, str(row.get("sha256")), str(row.get("settings"))))

    def stands(self, image: str, sha256: str, settings: str) -> bool:
        """Whether this picture has been judged with these settings, for good."""
        return digest(image, sha256, settings) in self._stands

    def wrote(self, stem: str, image: str | None = None) -> bool:
        """Whether the files of `stem` are the record's own; with `image`, of that picture."""
        owner = self._owners.get(digest(fold(stem)))
        return owner is not None and (image is None or owner == digest(image))


def read_index(folder: Path) -> Index:
    """The index of the record in `folder`, empty where there is none that can be read."""
    index = Index()
    with suppress(OSError):
        for row in read_rows(folder):
            index.add(row)
    return index


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every whole row of the record in `folder`, none where there is no record.

    The record may be written meanwhile. Raises OSError.
    """
    path = folder / RESULTS
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                if row := _row(line):
                    yield row


class Record(Index):
    """The record of `folder`, opened for adding; a context manager.

    Raises OutputError when another process is writing it or it is no record. OSErrors of the disk
    pass through.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        # Without O_NONBLOCK a pipe of that name would wait for its other end.
        self._file = os.open(self._path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise self._no_record()
            if not try_lock(self._file):
                raise OutputError(
                    f"{self._path} is being written by another inspection: wait for it to end, or "
                    "choose another --output."
                )
            self._read()
        except BaseException:
            os.close(self._file)
            raise
        self._open: dict[str, Any] | None = None  # the row whose beginning is written
        self._unsynced: list[Path] = []
        self._synced = time.monotonic()

    def begin(
        self, image: str, stem: str, sha256: str | None, settings: str, source: str = ""
    ) -> None:
        """Start the row of a picture, before the files of `stem` are written."""
        head = {"image": image, "stem": stem}
        self._append(json.dumps(head)[:-1])
        self._open = {**head, "source": source, "sha256": sha256, "settings": settings}

    def finish(self, fields: Mapping[str, Any], files: list[Path]) -> None:
        """End the row that was begun, after its `files`."""
        assert self._open is not None
        row = {**self._open, **fields}
        rest = {name: value for name, value in row.items() if name not in ("image", "stem")}
        begun, self._open = self._open, None
        try:
            self._append(", " + json.dumps(rest)[1:] + "\n")
        except BaseException:
            self._open = begun
            raise
        self.add(row)
        self._unsynced += files
        if time.monotonic() - self._synced >= SYNC_EVERY:
            self._sync()

    def fail(
        self, image: str, sha256: str | None, settings: str, error: str, reason: str = ""
    ) -> None:
        """Add the row of a picture that has no result; ends the row that was begun, if any.

        `reason` (of `core.result.REASONS`) says what is wrong with the picture: it is not judged.
        """
        fields: dict[str, Any] = {"error": error}
        if reason:
            fields |= {"verdict": NOT_JUDGED, "reasons": [reason]}
        if self._open is not None:
            self.finish(fields, [])
            return
        row = {"image": image, "sha256": sha256, "settings": settings, **fields}
        self._append(json.dumps(row) + "\n")

    def close(self) -> None:
        """End a row that an error left begun, force everything to the disk, free the lock."""
        try:
            if self._open is not None:
                self.finish({"error": CUT_OFF}, [])
            self._sync()
        finally:
            os.close(self._file)

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            with suppress(OSError):  # the first error tells more
                self.close()

    def _append(self, text: str) -> None:
        """Write all of it or, on a full disk, none."""
        data, end = memoryview(text.encode()), os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except BaseException:
            os.ftruncate(self._file, end)
            raise

    def _sync(self) -> None:
        for path in self._unsynced:
            file = os.open(path, os.O_RDWR)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        self._unsynced.clear()
        os.fsync(self._file)
        self._synced = time.monotonic()

    def _read(self) -> None:
        """Learn every row and mend the end."""
        end, known, line = 0, False, b""
        for line in self._lines():
            if line.endswith(b"\n"):
                end += len(line)
            if row := _row(line):
                self.add(row)
                known = True
        torn = line if not line.endswith(b"\n") else b""
        # A first line that was torn, or that a power cut left as zeros, is ours, too.
        if not known and (end or not (b'{"image"'.startswith(torn[:8]) or not torn.strip(b"\0"))):
            raise self._no_record()
        if torn:
            os.ftruncate(self._file, end)
        if head := _HEAD.match(torn):
            row = {"image": json.loads(head[1]), "stem": json.loads(head[2]), "error": CUT_OFF}
            _remove_temporaries(self._path.parent / row["stem"])
            self._append(json.dumps(row) + "\n")
            self.add(row)

    def _lines(self) -> Iterator[bytes]:
        with open(self._file, "rb", closefd=False) as file:
            yield from file

    def _no_record(self) -> OutputError:
        return OutputError(
            f"{self._path} is no record of `clipsam inspect`: move it away, or choose another "
            "--output."
        )


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line, or None."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("image"), str) else None


def _remove_temporaries(base: Path) -> None:
    """Remove what `write_bytes` was writing when the process was killed."""
    begun = [f".{(base.name + ending)[:40]}" for ending in ENDINGS]
    pattern = re.compile("|".join(re.escape(name) + TEMPORARY for name in begun))
    if base.parent.is_dir():
        for name in os.listdir(base.parent):  # noqa: PTH208 - 100,000 names, not as many Paths
            if pattern.fullmatch(name):
                (base.parent / name).unlink(missing_ok=True)
