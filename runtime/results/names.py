"""What the files of a picture are called."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import PurePath

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.core.result import GOOD

OVERLAY, MASK, SCORE = ENDINGS = (".overlay.png", ".mask.png", ".score.tiff")
_LONGEST = 255 - max(map(len, ENDINGS))  # bytes that a file system allows a name

SAVED = {"overlay": OVERLAY, "mask": MASK, "score": SCORE}


@dataclass(frozen=True)
class Save:
    """Which files are written for a part.

    Attributes:
      endings: of `ENDINGS`.
      good: whether also for good parts.
    """

    endings: tuple[str, ...] = ENDINGS
    good: bool = True

    def of(self, verdict: str) -> tuple[str, ...]:
        """The endings of a part's files."""
        return self.endings if self.good or verdict != GOOD else ()

    def __str__(self) -> str:
        words = [word for word, ending in SAVED.items() if ending in self.endings]
        return ",".join([*words, *(() if self.good else ("anomalous",))]) or "none"

    @classmethod
    def parse(cls, text: str) -> Save:
        """`text` is "none", or some of overlay, mask, score and anomalous, parted by commas:
        "anomalous" alone means all three. Raises OptionError."""
        words = text.split(",")
        if words == ["none"]:
            return cls(())
        if not set(words) <= {*SAVED, "anomalous"} or len(set(words)) < len(words):
            raise OptionError(
                f"save={text!r} must be none, or some of overlay, mask, score and anomalous (no "
                "files of good parts), parted by commas."
            )
        endings = tuple(ending for word, ending in SAVED.items() if word in words)
        return cls(endings or ENDINGS, "anomalous" not in words)


EVERYTHING = Save()


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
