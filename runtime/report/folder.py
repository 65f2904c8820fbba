"""The parts of a folder that `clipsam inspect` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.core.result import NOT_JUDGED, VERDICTS
from clipsam.runtime.report.parts import (
    Part,
    Run,
    boxes_of,
    number,
    ordered,
    text,
    timings_of,
)
from clipsam.runtime.results.index import RESULTS, read_rows
from clipsam.runtime.results.names import OVERLAY, SCORE

_RAN = ("bundle", "calibration", "provider", "settings", "version")


def read_folder(folder: Path, last: int, images: Path | None = None) -> Run:
    """The parts of `folder`, the newest row of each picture; at most the `last` ones.

    The pictures are looked for where they were inspected, or below `images`. Raises OptionError
    when there is no record, or nothing in it.
    """
    if not (folder / RESULTS).is_file():
        raise OptionError(
            f"{folder} holds no {RESULTS}: give the --output folder of `clipsam inspect`, or the "
            "file of a station's store."
        )
    rows = _rows(folder)
    if not rows:
        raise OptionError(f"{folder / RESULTS} holds no part yet: inspect something first.")
    parts = [_part(row, folder, images) for row in rows[-last:]]
    return Run(text(folder.resolve().name), ordered(parts), left_out=len(rows) - len(parts))


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The last row of every picture, in the order in which they were written."""
    seen: dict[str, dict[str, Any]] = {}
    try:
        for row in read_rows(folder):
            seen.pop(row["image"], None)
            seen[row["image"]] = row
    except OSError as error:
        raise OptionError(f"{folder / RESULTS} cannot be read ({error.strerror}).") from error
    return list(seen.values())


def _part(row: Mapping[str, Any], folder: Path, images: Path | None) -> Part:
    verdict = row.get("verdict")
    error = row.get("error")
    reasons = [text(r) for r in row["reasons"]] if isinstance(row.get("reasons"), list) else []
    width, height = number(row.get("width")), number(row.get("height"))
    precisions = row.get("precisions")
    ran = {key: text(row[key]) for key in _RAN if row.get(key)}
    if isinstance(precisions, Mapping):
        ran["precisions"] = ", ".join(f"{text(k)} {text(v)}" for k, v in precisions.items())
    overlay = _inside(folder, row.get("stem"), OVERLAY)
    return Part(
        name=text(row["image"]),
        verdict=verdict if verdict in VERDICTS and error is None else NOT_JUDGED,
        score=number(row.get("score")),
        limit=number(row.get("limit")),
        map_limit=number(row.get("map_limit")),
        taken=number(row.get("taken_at")),
        category=text(row.get("category")),
        reasons=tuple(reasons) or ("could not be inspected",) * (error is not None),
        message=text(error),
        timings=timings_of(row.get("timings")),
        sam=bool(number(row.get("prompts"))),
        late=row.get("late") is True,
        boxes=boxes_of(row.get("regions"), row.get("ignored")),
        size=(int(width), int(height)) if width and height else None,
        ran=ran,
        picture=_picture(row, images),
        sha256=row["sha256"] if isinstance(row.get("sha256"), str) else None,
        score_map=_inside(folder, row.get("stem"), SCORE),
        overlay=overlay,
    )


def _picture(row: Mapping[str, Any], images: Path | None) -> Path | None:
    if images is not None:
        return images / str(row["image"])
    source = row.get("source")
    return Path(source) if isinstance(source, str) and source else None


def _inside(folder: Path, stem: object, ending: str) -> Path | None:
    """A file of the record; names that lead out of its folder are none of its own."""
    if not isinstance(stem, str) or not stem:
        return None
    inner = PurePosixPath(stem)
    if inner.is_absolute() or ".." in inner.parts or "\0" in stem:
        return None
    return folder / (stem + ending)
