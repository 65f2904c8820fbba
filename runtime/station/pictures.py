"""Pictures on disk: written so that a power cut does not lose them, kept by rule, or let go.

line.db
line.pictures/incoming/       frames of a camera that are not judged yet
line.pictures/2026-01-31/     00000012-part.png, and 00000012-part.map.png of the score map
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import quote, unquote

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.files import not_written
from clipsam.runtime.core.result import GOOD
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import SUFFIXES
from clipsam.runtime.images.thumbnail import shrink
from clipsam.runtime.station.schema import now

_INCOMING = "incoming"
_MAP_SIDE = 512  # pixels, of a score map that is kept


@dataclass(frozen=True)
class Keep:
    """Which pictures are kept, and for how long.

    Attributes:
      good: share of the good parts' pictures; those of all others are always kept.
      leave: whether pictures of a watched folder stay where they are, all of them.
      retain: days after which parts and pictures are removed; None: never.
      quota: bytes that all kept pictures may take; None: as many as there is room for.
      min_free: bytes that must stay free on the disk; with less no picture is added.
    """

    good: float = 1.0
    leave: bool = False
    retain: float | None = None
    quota: int | None = None
    min_free: int = 256 << 20

    def wants(self, verdict: str, number: int) -> bool:
        """Whether to keep the picture of part `number`: the same answer whenever it is asked."""
        if verdict != GOOD:
            return True
        draw = hashlib.sha256(str(number).encode()).digest()[:8]
        return int.from_bytes(draw, "big") < self.good * 2.0**64


class Pictures:
    """The folder of a store's pictures.

    Attributes:
      folder: absolute; its parent is the store's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write_incoming(self, image: Image, serial: str | None) -> tuple[Path, str]:
        """Write a frame [H,W,3] uint8 RGB as PNG, on disk before this returns; path and sha256.

        Raises DiskFullError, OutputError.
        """
        done, data = cv2.imencode(
            ".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
        )
        if not done:
            raise OutputError("A frame could not be encoded as PNG.")
        time = now().replace(":", "")
        path = self.folder / _INCOMING / f"{time},{quote(serial or '', '')[:150]}"
        path = path.with_name(f"{path.name},{secrets.token_hex(4)}.png")
        write_safely(path, data.tobytes())
        return path, hashlib.sha256(data.tobytes()).hexdigest()

    def incoming(self) -> Iterator[tuple[Path, str | None]]:
        """(path, serial) of every whole frame that was written, oldest first."""
        with suppress(FileNotFoundError):
            for path in sorted((self.folder / _INCOMING).iterdir()):
                if path.name.startswith("."):
                    path.unlink(missing_ok=True)  # cut off while it was written
                else:
                    yield path, unquote(path.stem.split(",")[1]) or None

    def place(self, number: int, name: str, taken_at: str, suffix: str) -> Path:
        """Where the picture of a part is kept."""
        stem = "".join(c if c.isalnum() or c in "-_. " else "_" for c in PurePath(name).stem)
        suffix = suffix.lower() if suffix.lower() in SUFFIXES else ".png"
        return self.folder / taken_at[:10] / f"{number:08d}-{stem[:60]}{suffix}"

    def write_map(self, picture: Path, score_map: NDArray[np.float32]) -> None:
        """Write a score map [H,W] beside a picture that is kept. Raises DiskFullError, OutputError.

        8-bit gray, 255 is 1.0; made smaller where a side is above 512 pixels.
        """
        grey = np.rint(np.clip(shrink(score_map, _MAP_SIDE), 0, 1) * 255).astype(np.uint8)
        write_safely(map_of(picture), cv2.imencode(".png", grey)[1].tobytes())

    def relative(self, path: Path) -> str:
        """As the store writes it: relative to the store's folder, where it lies within."""
        return path.relative_to(self.folder.parent).as_posix()


def map_of(picture: Path) -> Path:
    """Where the score map of a picture that is kept lies."""
    return picture.with_name(f"{picture.stem}.map.png")


def sync(path: Path) -> None:
    """Have a file that somebody else wrote on disk, as far as its file system can do that."""
    with suppress(OSError, ValueError):  # ValueError: a NUL in the name
        _fsync(path)
        _fsync(path.parent)


def move(source: Path, target: Path) -> None:
    """Move a file, also to another disk: whole under its new name, or where it was.

    Raises DiskFullError, OutputError.
    """
    with _errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if source.is_symlink():  # moved, it might lead nowhere
                raise OSError(errno.EXDEV, "a link")
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            write_safely(target, source.read_bytes())
            source.unlink()


def free(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which may not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def write_safely(path: Path, data: bytes) -> None:
    """Write a file whole, and on disk before this returns. Raises DiskFullError, OutputError."""
    temporary = path.with_name(f".{path.name}")
    with _errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _fsync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no such thing
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _errors(path: Path) -> Generator[None, None, None]:
    """OSErrors as ours."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error
