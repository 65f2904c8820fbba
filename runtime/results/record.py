"""`results.jsonl`: one row for every judgement, only ever added to, by one process at a time.

A row is a JSON object: `image` (the picture's name), `stem` (what its three files begin with),
`source` (the picture's path then), `sha256` (of the picture), `settings` (a digest of everything
else that decides the answer), the fields of `Result` or `error`, and last `crc32` of all before it
in its line. What stands is never written again and never removed. A damaged line counts for
nothing.

A row is written when its files are on the disk, and handed to the system at once: killing the
process loses none, and no row names a file that is not there. Once a second and at the end the rows
are forced to the disk, so a power cut loses about one second of them. The names of the files that
a run may write are in `results.jsonl.journal` before it writes any: so what it leaves without a row
remains known as ours and is replaced when the picture is inspected again. A run that finished
everything removes the journal.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.files import TEMPORARY, write_bytes
from clipsam.runtime.core.lock import try_lock
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.results.index import (
    JOURNAL,
    RESULTS,
    Index,
    no_record,
    parse_row,
    read_journal,
    row_line,
)
from clipsam.runtime.results.names import ENDINGS

SYNC_EVERY = 1.0  # seconds

_LOG = get_logger("results")


class Record(Index):
    """The record of `folder`, opened for adding; a context manager.

    Raises OutputError when another process is writing it or it is no record. OSErrors of the disk
    pass through.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._path = folder, folder / RESULTS
        self._unfinished: dict[str, str] = {}  # stem -> picture, of what has no row yet
        self._synced_folders: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        # Without O_NONBLOCK a pipe of that name would wait for its other end.
        self._file = os.open(self._path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise no_record(self._path)
            if not try_lock(self._file):
                raise OutputError(
                    f"{self._path} is being written by another inspection: wait for it to end, or "
                    "choose another --output."
                )
            self._read()
            left = read_journal(folder / JOURNAL)
            _remove_temporaries(folder, left)
        except BaseException:
            os.close(self._file)
            raise
        self._note({stem: image for stem, image in left.items() if _has_files(folder / stem)})
        self._synced = time.monotonic()

    def plan(self, pictures: Mapping[str, str]) -> None:
        """Note the stems, and the picture of each, whose files may be written from now on."""
        planned = {**self._unfinished, **pictures}
        self._note(pictures)
        self._write_journal(planned)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Add a row; with `stem` if files of it were written."""
        if "error" not in row:
            self._sync_folders(row["stem"])
        self._append(row_line(row))
        self.add(row)
        self._unfinished.pop(row.get("stem", ""), None)
        if time.monotonic() - self._synced >= SYNC_EVERY:
            self._sync()

    def close(self) -> None:
        """Force everything to the disk, free the lock."""
        try:
            self._sync()
            left = {s: i for s, i in self._unfinished.items() if _has_files(self._folder / s)}
            self._write_journal(left)
        finally:
            os.close(self._file)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if error is None:
            self.close()
        else:
            with suppress(OSError, OutputError):  # the first error tells more
                self.close()

    def _note(self, pictures: Mapping[str, str]) -> None:
        """Learn whose the files of these stems are, with or without a row."""
        for stem, image in pictures.items():
            if not self.wrote(stem, image):
                self._unfinished[stem] = image
                self.own(image, stem)

    def _write_journal(self, pictures: Mapping[str, str]) -> None:
        path = self._folder / JOURNAL
        if pictures:
            write_bytes(path, json.dumps(pictures).encode())
        else:
            path.unlink(missing_ok=True)
        _sync_folder(self._folder)

    def _append(self, line: bytes) -> None:
        """Write all of it or, on a full disk, none."""
        data, end = memoryview(line), os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except BaseException:
            os.ftruncate(self._file, end)
            raise

    def _sync_folders(self, stem: str) -> None:
        """Force to the disk that the files of `stem` are where they are."""
        folder = (self._folder / stem).parent
        if not folder.is_dir():  # none were wanted
            return
        _sync_folder(folder)
        while folder not in self._synced_folders and folder != self._folder:
            self._synced_folders.add(folder)
            folder = folder.parent
            _sync_folder(folder)

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def _read(self) -> None:
        """Learn every row and mend a torn end."""
        end, known, damaged, line = 0, False, 0, b""
        for line in self._lines():
            if line.endswith(b"\n"):
                end += len(line)
            if row := parse_row(line):
                self.add(row)
                known = True
            else:
                damaged += line.endswith(b"\n")
        torn = line if not line.endswith(b"\n") else b""
        if row := parse_row(torn + b"\n"):  # an editor left out the last newline
            self._append(b"\n")
            self.add(row)
            return
        # A first line that was torn, or that a power cut left as zeros, is ours, too.
        if not known and (end or not (b'{"image"'.startswith(torn[:8]) or not torn.strip(b"\0"))):
            raise no_record(self._path)
        if torn:
            _LOG.info("%s: its last line was cut off, and is removed", self._path)
            os.ftruncate(self._file, end)
        if damaged:
            _LOG.warning("%s has damaged lines (%d), which count for nothing.", self._path, damaged)

    def _lines(self) -> Iterator[bytes]:
        with open(self._file, "rb", closefd=False) as file:
            yield from file


def _has_files(base: Path) -> bool:
    return any(os.path.lexists(f"{base}{ending}") for ending in ENDINGS)


def _sync_folder(folder: Path) -> None:
    """Force a folder's list of files to the disk; Windows has no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a network's, which cannot
            raise
    finally:
        os.close(descriptor)


def _remove_temporaries(folder: Path, stems: Iterable[str]) -> None:
    """Remove what `write_bytes` was writing when the process was killed."""
    begun: dict[Path, set[str]] = {folder: {f".{JOURNAL[:40]}"}}
    for base in (folder / stem for stem in stems):
        names = begun.setdefault(base.parent, set())
        names.update(f".{(base.name + ending)[:40]}" for ending in ENDINGS)
    for place, names in begun.items():
        if not place.is_dir():
            continue
        for name in os.listdir(place):  # noqa: PTH208 - 100,000 names, not as many Paths
            if name[:-17] in names and re.fullmatch(TEMPORARY, name[-17:]):
                (place / name).unlink(missing_ok=True)
