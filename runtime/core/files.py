"""Files written whole or not at all, and what identifies them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from clipsam.runtime.core.errors import DiskFullError, OutputError

TEMPORARY = r"\.[0-9a-f]{16}"  # ends the name of a file being written; a regular expression
DATA_SUFFIX = ".data"  # of the weights beside an ONNX file too large for one file


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Open a file to read, unless it is no regular file or larger than `most` bytes.

    A pipe would keep its reader waiting for ever, a device has no end. Raises OSError.
    """
    # Without waiting: the type can only be asked safely of what is open.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        if most is not None and status.st_size > most:
            size = f"It has {status.st_size:,} bytes, over the limit of {most:,}"
            raise OSError(errno.EFBIG, size, str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def sha256(path: Path, most: int | None = None) -> str:
    """Hex digest of a file's bytes; raises OSError, for one of over `most` bytes as well."""
    digest = hashlib.sha256()
    with open_regular(path, most) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def onnx_digest(files: Mapping[str, str], name: str) -> str:
    """What identifies the ONNX file `name` of a bundle, given the sha256 of every file of it.

    The file's own sha256; with weights beside it a hash of both, since new weights may leave the
    graph's file as it is.
    """
    if (data := files.get(name + DATA_SUFFIX)) is None:
        return files[name]
    return hashlib.sha256(f"{files[name]} {data}".encode()).hexdigest()


def digest_onnx(path: Path) -> str:
    """`onnx_digest` of a file on disk; raises OSError."""
    data = path.with_name(path.name + DATA_SUFFIX)
    return onnx_digest(
        {p.name: sha256(p) for p in (path, data) if p == path or p.exists()}, path.name
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name beside `path`, then rename.

    Missing folders are made. Raises OutputError, DiskFullError.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_with(path, write)


def write_with(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` fill a temporary file beside `path`, then rename it; see `write_bytes`."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
        # The system applies the umask here: only in this way is it read without changing it.
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        temporary = name
        writer(temporary)
        _sync(temporary)  # or a power cut would leave the name with nothing behind it
        temporary.replace(path)
    except OSError as error:
        raise not_written(path, error) from error
    finally:  # renamed when all went well; an interruption must not leave it either
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def not_written(path: Path, error: OSError) -> OutputError:
    """The sentence for a file that the system would not let be written; DiskFullError where there
    is no space."""
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    return (DiskFullError if full else OutputError)(
        f"{path} could not be written ({error.strerror or error}): "
        f"{'free some space' if full else 'allow that'}, or choose another folder."
    )


def _sync(path: Path) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
