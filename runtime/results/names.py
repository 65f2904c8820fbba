"""What the files of a picture are called."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import PurePath

OVERLAY, MASK, SCORE = ENDINGS = (".overlay.png", ".mask.png", ".score.tiff")
_LONGEST = 255 - max(map(len, ENDINGS))  # bytes that a file system allows a name


def fold(name: str) -> str:
    """One spelling of names that some file system takes for the same: letter case, accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def stems(name: PurePath) -> tuple[str, str, str]:
    """What the files of the picture `name` may begin with, in the order of preference.

    Without its suffix; with it, beside another picture of the same stem; and with a hash, beside
    one that differs in letter case alone. Too long for a file system, they end in a hash as well.
    """
    tag = _hash(name.as_posix())
    whole = name.name
    choices = (name.stem, whole, f"{whole}~{tag}")
    return tuple((name.parent / _fitting(choice, tag)).as_posix() for choice in choices)  # type: ignore[return-value]


def _fitting(name: str, tag: str) -> str:
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= _LONGEST:
        return name
    kept = data[: _LONGEST - len(tag) - 1].decode("utf-8", "ignore")
    return f"{kept}~{tag}"


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
