"""What a record and its journal hold: the form of a row, and what is learned of all of them."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.files import open_regular
from clipsam.runtime.core.result import NOT_JUDGED
from clipsam.runtime.results.names import fold

RESULTS = "results.jsonl"
JOURNAL = "results.jsonl.journal"
_CHECK = b', "crc32": '


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
        # A late part deserves another try, and who asks again wants to know what is not judged.
        if not ("error" in row or row.get("late") or row.get("verdict") == NOT_JUDGED):
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
        for row in read_rows(folder):
            index.add(row)
        for stem, image in read_journal(folder / JOURNAL).items():
            index.own(image, stem)
    return index


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every whole row of the record in `folder`, none where there is no record.

    The record may be written meanwhile. Raises OSError.
    """
    path = folder / RESULTS
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                if row := parse_row(line):
                    yield row


def row_line(row: Mapping[str, Any]) -> bytes:
    """The row as it is written."""
    text = json.dumps(row).encode()[:-1]
    return text + _CHECK + b"%d}\n" % zlib.crc32(text)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of a whole line, or None."""
    text, _, check = line.rpartition(_CHECK)
    if check != b"%d}\n" % zlib.crc32(text):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("image"), str) else None


def read_journal(path: Path) -> dict[str, str]:
    """stem -> picture of what the last run may have left; empty when it finished everything."""
    try:
        with open_regular(path) as file:
            pictures = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise no_record(path) from error
    if not (isinstance(pictures, dict) and all(map(_is_own, pictures.items()))):
        raise no_record(path)
    return pictures


def _is_own(entry: tuple[str, Any]) -> bool:
    """Whether a journal's entry names files within the folder."""
    stem, image = entry
    inside = not PurePath(stem).anchor and ".." not in PurePath(stem).parts
    return isinstance(image, str) and inside and "\0" not in stem


def no_record(path: Path) -> OutputError:
    """The sentence for a file of that name that no inspection wrote."""
    return OutputError(
        f"{path} is no record of `clipsam inspect`: move it away, or choose another --output."
    )
