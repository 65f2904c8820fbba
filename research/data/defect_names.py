"""Which defect an image of a data set shows, in words: the names that people gave its kinds.

MVTec AD names them by folders (`broken_large`), VisA in every category's `image_anno.csv`.
"""

from __future__ import annotations

import csv
from pathlib import Path

from clipsam.research.data.samples import LabelledImage, Listing
from clipsam.research.models.defect_words import KIND_WORDS, KindWords
from clipsam.runtime.core.errors import DatasetError

_NO_KIND = frozenset(
    ("anomaly", "bad", "combined", "damaged", "defect", "defective", "ng", "other")
)  # says that something is wrong, and not what
_GOOD = ""


def named_images(listing: Listing) -> list[tuple[LabelledImage, str]]:
    """The images that show one kind of defect, with its name and a mask, and the good ones, whose
    name is "". What is called "combined" or "defective", or shows several kinds, is left out.

    Raises DatasetError where VisA's table of names is missing or no image has a name.
    """
    names = _visa_names(listing) if listing.layout == "visa" else None
    found = []
    for item in listing.images:
        if item.good:
            found.append((item, _GOOD))
            continue
        said = [item.defect] if names is None else names.get(item.image_path, [])
        name = said[0].replace("_", " ").strip().lower() if len(said) == 1 else ""
        if name and name not in _NO_KIND and item.has_truth:
            found.append((item, name))
    if not any(name for _, name in found):
        raise DatasetError(
            "no image of the data set says which kind of defect it shows: give one with a folder "
            "for each kind and masks, or VisA as published."
        )
    return found


def known_kinds(names: set[str]) -> tuple[tuple[KindWords, ...], dict[str, int]]:
    """The kinds of the generator and those that only these names say, and each name's place among
    them: "pores" is the generator's hole, "thread" a kind of its own."""
    kinds = list(KIND_WORDS)
    place = {
        phrase: number
        for number, kind in enumerate(kinds)
        for phrase in (kind.name, kind.word, *kind.learned, *kind.held_out)
    }
    for name in sorted(names - {_GOOD}):
        if name not in place:
            place[name] = len(kinds)
            kinds.append(KindWords(name, name, name, (), ()))
    return tuple(kinds), {name: place[name] for name in names - {_GOOD}}


def _visa_names(listing: Listing) -> dict[Path | None, list[str]]:
    """The kinds that every defective image of VisA shows."""
    folders = {item.image_path.parents[3] for item in listing.images if item.image_path}
    names: dict[Path | None, list[str]] = {}
    for folder in sorted(folders):
        table = folder / "image_anno.csv"
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(
                f"{table} cannot be read ({error}): it names VisA's kinds of defects, take it from "
                "the published archive."
            ) from error
        for row in rows:
            if not {"image", "label"} <= row.keys():
                raise DatasetError(f"{table} does not have the columns image and label.")
            kinds = [kind for kind in (row["label"] or "").split(",") if kind.strip()]
            names[folder.parent / row["image"]] = kinds
    return names
