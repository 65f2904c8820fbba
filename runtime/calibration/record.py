"""The calibration file: what good parts taught about one product in front of one camera.

One file: a line of JSON, then the bytes of the arrays that it names. Nothing is unpickled, every
value is checked, and the line holds the sha256 of what follows. `id` names the exact content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import CalibrationError, OptionError
from clipsam.runtime.core.files import open_regular, write_bytes
from clipsam.runtime.core.strict_json import loads
from clipsam.runtime.stages.picture import FACTS
from clipsam.runtime.stages.prompts import MOST_LIMIT
from clipsam.runtime.stages.reference import Reference
from clipsam.runtime.stages.tiles import OFF, check_tiles

SCHEMA = 1
SUFFIX = ".calibration"
WORDS = ("look_for", "ignore_kinds")
SETTINGS = ("min_area", "mm_per_pixel", "roi", "tiles", *WORDS)
"""Those of `InspectOptions` that a calibration belongs to."""
_MOST_BYTES, _MOST_HEAD = 64 << 20, 1 << 20
_MOST_TOKENS, _MOST_LENGTH, _MOST_SIDE = 1 << 16, 1 << 13, 1 << 16
_AGAIN = "calibrate again with `clipsam calibrate`"

Bounds = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Promise:
    """What the limit promises: of good parts like those seen, at most `false_alarms` score above
    it, with this confidence."""

    false_alarms: float  # the exact bound, at most what was asked for
    confidence: float
    parts: int  # good parts that the limit rests on
    above: int  # of them score above it
    duplicates: int  # pictures of parts that were seen already


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `clipsam calibrate` found; `read` and `write` are its file.

    Attributes:
      bundle: id of the bundle it belongs to.
      category: the word that the part was called.
      limit: of the score.
      promise: what the limit rests on.
      bounds: what a picture's facts (`stages.picture.FACTS`) must lie within to be judged.
      settings: of `SETTINGS`, those of `InspectOptions.settings` that it was made with.
      ignore: bool [H,W], the ignored area; None where there is none.
      reference: tokens of good parts; None where none were kept.
      notes: what was estimated and measured beside; for people.
      id: 12 hex digits that name the exact content; "" before it is written.
    """

    bundle: str
    category: str
    limit: float
    promise: Promise
    bounds: Bounds
    settings: Mapping[str, Any] = field(default_factory=dict)
    ignore: NDArray[np.bool_] | None = None
    reference: Reference | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    @property
    def good_scores(self) -> tuple[float, ...]:
        """Scores of the good parts that the limit rests on, or of some of many; () where the file
        has none."""
        found = self.notes.get("good_scores")
        kept = [s for s in found if type(s) in (int, float)] if isinstance(found, list) else []
        return tuple(float(score) for score in kept if math.isfinite(score))

    def to_bytes(self) -> bytes:
        """The content of its file."""
        arrays: dict[str, NDArray[Any]] = {}
        if self.reference is not None:
            arrays |= {"tokens": self.reference.tokens, "parts": self.reference.parts}
        if self.ignore is not None:
            arrays["ignore"] = self.ignore.astype(np.uint8)
        body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
        head = {
            "calibration": SCHEMA,
            "bundle": self.bundle,
            "category": self.category,
            "limit": self.limit,
            "promise": asdict(self.promise),
            "bounds": {name: list(pair) for name, pair in self.bounds.items()},
            "settings": dict(self.settings),
            "weight": self.reference.weight if self.reference else 0.0,
            "notes": dict(self.notes),
            "arrays": {name: [str(a.dtype), *a.shape] for name, a in arrays.items()},
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return json.dumps(head, ensure_ascii=False, allow_nan=False).encode() + b"\n" + body

    def write(self, path: Path) -> str:
        """Write the file, whole or not at all; returns its id. Raises OutputError."""
        data = self.to_bytes()
        write_bytes(path, data)
        return _identity(data)

    @classmethod
    def read(cls, path: Path | str) -> Calibration:
        """Read and check a file. Raises CalibrationError."""
        try:
            with open_regular(Path(path), _MOST_BYTES) as file:
                data = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CalibrationError(
                f"The calibration {path} cannot be read ({reason}): check the path, or {_AGAIN}."
            ) from error
        try:
            return cls.from_bytes(data)
        except CalibrationError:
            raise
        except (
            OptionError,
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
            AttributeError,
        ) as error:
            raise CalibrationError(
                f"{path} is no calibration, or a damaged one ({str(error)[:200]}): copy it again, "
                f"or {_AGAIN}."
            ) from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """Inverse of `to_bytes`. Raises CalibrationError, and ValueError, TypeError or KeyError on
        what does not fit."""
        line, found, body = data[:_MOST_HEAD].partition(b"\n")
        if not found:
            raise ValueError("its first line does not end")
        head = loads(line)
        if not isinstance(head, dict) or type(head.get("calibration")) is not int:
            raise ValueError("its first line says nothing of a calibration")
        if head["calibration"] != SCHEMA:
            raise CalibrationError(
                f"The calibration has schema {head['calibration']}, this version of clipsam reads "
                f"schema {SCHEMA}: {_AGAIN}."
            )
        body = data[len(line) + 1 :]
        if hashlib.sha256(body).hexdigest() != head["sha256"]:
            raise ValueError("its sha256 is not that of its content")
        arrays = _arrays(_mapping(head["arrays"]), body)
        reference = None
        if "tokens" in arrays:
            weight = _number(head["weight"], 0, 1e6)
            reference = Reference(arrays["tokens"], arrays["parts"], weight)
        ignore = arrays["ignore"] > 0 if "ignore" in arrays else None
        return cls(
            _word(head["bundle"]),
            _word(head["category"]),
            _positive(head["limit"], MOST_LIMIT),
            _promise(_mapping(head["promise"])),
            _bounds(_mapping(head["bounds"])),
            _settings(_mapping(head["settings"])),
            ignore,
            reference,
            _mapping(head["notes"]),
            _identity(data),
        )

    def check_made_for(self, bundle: str) -> None:
        """Raise CalibrationError for another bundle: its scores are others."""
        if bundle != self.bundle:
            raise CalibrationError(
                f"The calibration was made with the bundle {self.bundle} and this one is {bundle}: "
                f"use that bundle, or {_AGAIN}."
            )


def _identity(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _arrays(shapes: dict[str, Any], body: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of the body; every shape is checked before anything is made of it."""
    kinds = {"tokens": ("float16", 2), "parts": ("int32", 1), "ignore": ("uint8", 2)}
    most = {"tokens": (_MOST_TOKENS, _MOST_LENGTH), "parts": (_MOST_TOKENS,)}
    arrays, start = {}, 0
    for name, spec in shapes.items():
        dtype, *shape = spec
        if (dtype, len(shape)) != kinds[name]:
            raise ValueError(f"{name} is {dtype} of {len(shape)} axes")
        for size, bound in zip(shape, most.get(name, (_MOST_SIDE,) * 2), strict=True):
            if type(size) is not int or not 0 < size <= bound:
                raise ValueError(f"an axis of {name} is {size!r}")
        end = start + math.prod(shape) * np.dtype(dtype).itemsize
        if end > len(body):
            raise ValueError(f"{name} is cut off")
        arrays[name] = np.frombuffer(body[start:end], dtype).reshape(shape)
        start = end
    if start != len(body):
        raise ValueError("something follows its arrays")
    if ("tokens" in arrays) != ("parts" in arrays):
        raise ValueError("tokens and their parts belong together")
    if "tokens" in arrays:
        if len(arrays["tokens"]) != len(arrays["parts"]):
            raise ValueError("not every token has a part")
        if not np.isfinite(arrays["tokens"]).all():
            raise ValueError("a token is not finite")
    return arrays


def _promise(values: dict[str, Any]) -> Promise:
    counts = {name: _whole(values[name]) for name in ("parts", "above", "duplicates")}
    rate, confidence = (_number(values[n], 0, 1) for n in ("false_alarms", "confidence"))
    return Promise(rate, confidence, **counts)


def _bounds(values: dict[str, Any]) -> dict[str, tuple[float, float]]:
    bounds = {}
    for name, pair in values.items():
        if name not in FACTS or not isinstance(pair, list):
            raise ValueError(f"{name!r:.50} is not a fact of a picture")
        low, high = (_number(value, -1e9, 1e9) for value in pair)
        bounds[name] = (low, high)
    return bounds


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    if unknown := set(values) - set(SETTINGS):
        raise ValueError(f"unknown setting {min(unknown)!r:.50}")
    for name in {"min_area", "mm_per_pixel"} & set(values):
        _positive(values[name], 1e12)
    if "roi" in values:
        roi = [_whole(side) for side in values["roi"]]
        if len(roi) != 4 or min(roi[2:]) < 2:
            raise ValueError(f"the roi is {roi}")
    if "tiles" in values and check_tiles(_word(values["tiles"])) == OFF:
        raise ValueError("tiles are off, and named")
    for name in set(WORDS) & set(values):
        if not isinstance(values[name], list) or not values[name]:
            raise ValueError(f"{name} is {values[name]!r:.50}")
        for word in values[name]:
            _word(word)
    return values


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.50} is not a mapping")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
        raise TypeError(f"{value!r:.50} is not a word")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r:.50} is not a count")
    return value


def _positive(value: Any, high: float) -> float:
    if not (found := _number(value, 0, high)) > 0:
        raise ValueError(f"{value!r} is not a number above 0")
    return found


def _number(value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{value!r:.50} is not a number from {low:g} to {high:g}")
    return float(value)
