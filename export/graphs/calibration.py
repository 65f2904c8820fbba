"""The user's own good images: int8 takes its ranges from some and is checked on others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipsam.runtime.core.errors import ExportError, ImageError
from clipsam.runtime.core.files import sha256
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.reader import SUFFIXES, read_image

MAX_CALIBRATION = 64  # images that ranges are taken from
HELD_OUT = 2  # images that only the check sees


@dataclass(frozen=True)
class CalibrationImages:
    """Image files of a folder, divided in two.

    Attributes:
      calibration: what ranges are taken from, 1 to `MAX_CALIBRATION` files.
      held_out: what the result is checked on, `HELD_OUT` other files (one of a folder of two).
    """

    calibration: tuple[Path, ...]
    held_out: tuple[Path, ...]

    @classmethod
    def of_folder(cls, folder: Path) -> CalibrationImages:
        """The images of a folder and of those below it, spread over its whole range of names.

        Raises ExportError if there are fewer than two, or if one cannot be read.
        """
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if len(found) < 2:
            raise ExportError(
                f"{folder} holds {len(found) or 'no'} image{'s' * (len(found) != 1)} "
                f"({', '.join(SUFFIXES)}): --calibration needs a folder of at least 2 images of "
                "good parts, better 32 or more."
            )
        count = min(len(found), MAX_CALIBRATION + HELD_OUT)
        chosen = [found[i * len(found) // count] for i in range(count)]
        held = {count // 3, 2 * count // 3} if count > HELD_OUT else {1}
        images = cls(
            tuple(path for i, path in enumerate(chosen) if i not in held),
            tuple(path for i, path in enumerate(chosen) if i in held),
        )
        for _ in images.read(chosen):
            pass  # a file that cannot be read is found now, not after an hour
        return images

    def read(self, paths: list[Path] | tuple[Path, ...]) -> Iterator[tuple[str, Image]]:
        """Names and pixels (HxWx3 uint8 RGB) of the files, one at a time."""
        for path in paths:
            try:
                yield path.name, read_image(path)
            except ImageError as error:
                raise ExportError(f"--calibration: {error}") from error

    def digest(self) -> str:
        """sha256 over the content of every file, in order."""
        total = hashlib.sha256()
        for path in (*self.calibration, *self.held_out):
            total.update(sha256(path).encode())
        return total.hexdigest()
