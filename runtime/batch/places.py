"""File systems: a path of this machine, or an address such as `s3://bucket/folder`."""

from __future__ import annotations

import errno
import posixpath
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyarrow import ArrowInvalid, fs

from clipsam.runtime.core.errors import ImageError, OptionError, OutputError
from clipsam.runtime.core.files import not_written, open_regular, write_bytes
from clipsam.runtime.images.reader import MAX_BYTES

LOCAL = ""  # the address of this machine's own files
# A file appears there when all of it has arrived; elsewhere it is written by another name first.
_WHOLE = ("S3FileSystem", "GcsFileSystem", "AzureFileSystem")


class Place:
    """A file or folder: `path` within the file system that `address` opens; "" is this machine.

    Any process may open the address again: a Place can be sent to another machine, which has to
    see the same files by it.
    """

    def __init__(self, address: str, path: str) -> None:
        self.address, self.path = address, path

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that a person means. Raises OptionError."""
        if "://" not in text:
            return cls(LOCAL, Path(text).absolute().as_posix())
        files, path = _open(text)
        return cls(LOCAL if isinstance(files, fs.LocalFileSystem) else text, path)

    def __str__(self) -> str:
        return self.path if self.local else f"{self.address.partition('://')[0]}://{self.path}"

    def __truediv__(self, name: str) -> Place:
        return Place(self.address, posixpath.join(self.path, name))

    @property
    def local(self) -> bool:
        """Whether it is on this machine, or mounted there."""
        return self.address == LOCAL

    @property
    def files(self) -> Any:
        """The file system, of pyarrow."""
        return _open(self.address)[0]

    def kind(self) -> Any:
        """Whether it is a file, a folder or nothing: pyarrow's FileType. Raises OSError."""
        return self.files.get_file_info(self.path).type

    def names(self) -> list[str]:
        """Names of what lies directly in this folder, in order; none where there is no folder.
        Raises OSError."""
        return [posixpath.basename(info.path.rstrip("/")) for info in self._found(False)]

    def files_below(self) -> list[Any]:
        """pyarrow's FileInfo of all files below this folder, in order. Raises OSError."""
        return [info for info in self._found(True) if info.type == fs.FileType.File]

    def _found(self, recursive: bool) -> list[Any]:
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        return sorted(self.files.get_file_info(selector), key=lambda info: str(info.path))

    def picture(self, name: str) -> bytes:
        """The content of a picture file that the results call `name`. Raises ImageError."""
        try:
            if self.local:
                with open_regular(Path(self.path), MAX_BYTES) as file:
                    return file.read()
            with self.files.open_input_file(self.path) as file:
                if file.size() > MAX_BYTES:
                    size = f"It has {file.size():,} bytes, over the limit of {MAX_BYTES:,}"
                    raise OSError(errno.EFBIG, size)
                return bytes(file.read())
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{name} cannot be read ({reason}): check the path.") from error
        except MemoryError as error:
            raise ImageError(f"{name} does not fit in memory: free some, or cut it up.") from error

    def read(self) -> bytes:
        """The content of a file of ours. Raises OSError."""
        with self.files.open_input_file(self.path) as file:
            return bytes(file.read())

    def write(self, data: bytes) -> None:
        """Write the file whole or not at all, in place of what is there. Raises OutputError."""
        if self.local:
            write_bytes(Path(self.path), data)
            return
        direct = type(self.files).__name__ in _WHOLE
        first = self.path if direct else f"{self.path}.{secrets.token_hex(8)}"
        try:
            if not direct:
                self.files.create_dir(posixpath.dirname(self.path))
            with self.files.open_output_stream(first) as file:
                file.write(data)
            if not direct:
                self.files.move(first, self.path)
        except OSError as error:
            if not direct:
                with suppress(OSError):
                    self.files.delete_file(first)
            raise not_written(Path(str(self)), error) from error

    def remove(self) -> None:
        """Remove the file, if it is there. Raises OutputError."""
        try:
            self.files.delete_file(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(
                f"{self} could not be removed ({error.strerror or error}): allow it."
            ) from error


@lru_cache(maxsize=32)
def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it: pyarrow's own, else fsspec's."""
    if address == LOCAL:
        return fs.LocalFileSystem(), ""
    try:
        files, path = fs.FileSystem.from_uri(address)
        return files, path
    except OSError as error:
        raise _closed(address, error) from error
    except ArrowInvalid as error:
        if "Unrecognized filesystem" not in str(error):
            raise _closed(address, error) from error
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(address)
    except (OSError, ValueError, ImportError) as error:
        raise _closed(address, error) from error
    return fs.PyFileSystem(fs.FSSpecHandler(files)), path


def _closed(address: str, error: Exception) -> OptionError:
    reason = " ".join(str(error).split()).rstrip(".")
    return OptionError(f"{address} cannot be opened ({reason}): check the address and its access.")
