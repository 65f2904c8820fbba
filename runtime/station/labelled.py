"""What people said of parts, as pictures for the next calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipsam.runtime.core.errors import StoreError
from clipsam.runtime.station.sources.files import state_of
from clipsam.runtime.station.store import Store


@dataclass(frozen=True)
class Labelled:
    """Pictures of parts that a person labelled, oldest first.

    Attributes:
      good: of good parts.
      defective: of defective parts.
      gone: labelled parts whose picture was not kept.
    """

    good: tuple[Path, ...]
    defective: tuple[Path, ...]
    gone: int


def labelled_pictures(store: Path, category: str | None = None) -> Labelled:
    """Every labelled picture of a store, of one category or all. Raises StoreError.

    A calibration rests on good parts, so a store without one is refused.
    """
    found: dict[str, list[Path]] = {"good": [], "defective": []}
    gone = 0
    with Store(store, read_only=True) as opened:
        chosen = ("label IS NOT NULL", ()) if category is None else (
            "label IS NOT NULL AND category = ?", (category,)
        )  # fmt: skip
        for part in opened.parts(*chosen):
            path = part.picture_path(opened.path)
            if path is None or state_of(path) is None:
                gone += 1
            elif part.label is not None:
                found[part.label].append(path)
    if not found["good"]:
        told = f" ({gone} labelled parts have no picture any more)" if gone else ""
        raise StoreError(
            f"{store} has no picture of a part that a person called good{told}: `clipsam label "
            f"{store} PART good` says so of one."
        )
    return Labelled(tuple(found["good"]), tuple(found["defective"]), gone)
