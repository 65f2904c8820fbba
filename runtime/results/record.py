"""`results.jsonl`: one row for every judgement, only ever added to, by one process at a time.

A row is a JSON object: `image` (the picture's name), `stem` (what its three files begin with),
`sha256` (of the picture), `settings` (a digest of everything else that decides the answer), the
fields of `Result` or `error`, and last `crc32` of all before it in its line. What stands is never
written again and never removed; a damaged line counts for nothing.

A row is written when its files are on the disk, and handed to the system at once: killing the
process loses none, and no row names a file that is not there. Once a second and at the end the rows
are forced to the disk, so a power cut loses about one second of them. The names of the files that
a run may write are in `results.jsonl.journal` before it writes any: so what it leaves without a row
remains known as ours and is replaced when the picture is inspected again. A run that finished
everything removes the journal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.files import TEMPORARY, open_regular, write_bytes
from clipsam.runtime.core.lock import try_lock
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.results.names import ENDINGS, fold

RESULTS = "results.jsonl"
JOURNAL = "results.jsonl.journal"
SYNC_EVERY = 1.0  # seconds
_CHECK = b', "crc32": '

_LOG = get_logger("results")


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
            self.own(image, stem)
        if "error" not in row and not row.get("late"):  # a late part deserves another try
            self._stands.add(digest(image, str(row.get("sha256")), str(row.get("settings"))))

    def own(self, image: str, stem: str) -> None:
        """Learn that the files of `stem` are this picture's."""
        self._owners[digest(fold(stem))] = digest(image)

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
    with suppress(OSError, OutputError):
        path = folder / RESULTS
        if path.is_file():
            with path.open("rb") as file:
                for line in file:
                    if row := _row(line):
                        index.add(row)
        for stem, image in _read_journal(folder / JOURNAL).items():
            index.own(image, stem)
    return index


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
                raise _no_record(self._path)
            if not try_lock(self._file):
                raise OutputError(
                    f"{self._path} is being written by another inspection: wait for it to end, or "
                    "choose another --output."
                )
            self._read()
            left = _read_journal(folder / JOURNAL)
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            if row := _row(line):
                self.add(row)
                known = True
            else:
                damaged += line.endswith(b"\n")
        torn = line if not line.endswith(b"\n") else b""
        if row := _row(torn + b"\n"):  # an editor left out the last newline
            self._append(b"\n")
            self.add(row)
            return
        # A first line that was torn, or that a power cut left as zeros, is ours, too.
        if not known and (end or not (b'{"image"'.startswith(torn[:8]) or not torn.strip(b"\0"))):
            raise _no_record(self._path)
        if torn:
            _LOG.info("%s: its last line was cut off, and is removed", self._path)
            os.ftruncate(self._file, end)
        if damaged:
            _LOG.warning("%s has damaged lines (%d), which count for nothing.", self._path, damaged)

    def _lines(self) -> Iterator[bytes]:
        with open(self._file, "rb", closefd=False) as file:
            yield from file


def _no_record(path: Path) -> OutputError:
    return OutputError(
        f"{path} is no record of `clipsam inspect`: move it away, or choose another --output."
    )


def row_line(row: Mapping[str, Any]) -> bytes:
    """The row as it is written."""
    text = json.dumps(row).encode()[:-1]
    return text + _CHECK + b"%d}\n" % zlib.crc32(text)


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line, or None."""
    text, _, check = line.rpartition(_CHECK)
    if check != b"%d}\n" % zlib.crc32(text):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("image"), str) else None


def _read_journal(path: Path) -> dict[str, str]:
    """stem -> picture of what the last run may have left; empty when it finished everything."""
    try:
        with open_regular(path) as file:
            pictures = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _no_record(path) from error
    if not (isinstance(pictures, dict) and all(map(_is_own, pictures.items()))):
        raise _no_record(path)
    return pictures


def _is_own(entry: tuple[str, Any]) -> bool:
    """Whether a journal's entry names files within the folder."""
    stem, image = entry
    inside = not PurePath(stem).anchor and ".." not in PurePath(stem).parts
    return isinstance(image, str) and inside and "\0" not in stem


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
