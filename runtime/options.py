"""How sensitive an inspection is and where it looks: one record for commands and API."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.bundle import Bundle
from clipsam.runtime.calibration.record import SETTINGS, WORDS, Calibration, Promise
from clipsam.runtime.core.errors import CalibrationError, ImageError, OptionError
from clipsam.runtime.core.result import Region
from clipsam.runtime.images.image import Image
from clipsam.runtime.manifest import MOST_LETTERS
from clipsam.runtime.stages.preprocess import ZOOMS
from clipsam.runtime.stages.prompts import MOST_LIMIT, PromptOptions
from clipsam.runtime.stages.steering import Asked
from clipsam.runtime.stages.tiles import OFF, check_tiles

Box = tuple[int, int, int, int]
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class InspectOptions:
    """What a user may change without another bundle. None: as the bundle, or the calibration, says.

    Raises OptionError for values out of their range.

    Attributes:
      limit: a part is anomalous whose score is above it; higher finds fewer.
      min_area: the smallest defect that counts, in pixels of the image; in mm² with `mm_per_pixel`.
      mm_per_pixel: what a pixel's side covers of the part.
      roi: (x, y, width, height) in pixels: the image is cropped to it before anything else.
      ignore: bool [H,W] of the whole image, True where nothing counts.
      tiles: "off" (as None), "auto" or columns x rows such as "3x2": overlapping windows in which
        CLIP looks beside the whole (`stages.tiles`).
      zoom: "off": SAM is shown the whole image, as in the paper; "auto": crops around defects
        where they show more (`stages.zoom`). It changes no verdict.
      look_for: words of the bundle for defects, "unknown" among them: nothing else counts.
      ignore_kinds: words for what is no defect, such as "printed text".
    """

    limit: float | None = None
    min_area: float | None = None
    mm_per_pixel: float | None = None
    roi: Box | None = None
    ignore: NDArray[np.bool_] | None = None
    tiles: str | None = None
    zoom: str | None = None
    look_for: tuple[str, ...] = ()
    ignore_kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, most in (("limit", MOST_LIMIT), ("min_area", None), ("mm_per_pixel", None)):
            value = getattr(self, name)
            known = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and not (known and 0 < value <= (most or math.inf)):
                bound = f", at most {most:g}" if most else ""
                raise OptionError(f"{name}={value!r} must be a number greater than 0{bound}.")
        if self.roi is not None:
            whole = isinstance(self.roi, tuple | list) and len(self.roi) == 4
            if not whole or not all(type(v) is int for v in self.roi) or min(self.roi) < 0:
                raise OptionError(f"roi={self.roi!r} must be x, y, width and height in pixels.")
            if min(self.roi[2:]) < 2:
                raise OptionError(f"roi={self.roi!r} is too small: give 2 pixels a side or more.")
            object.__setattr__(self, "roi", tuple(self.roi))
        if self.ignore is not None and not (
            isinstance(self.ignore, np.ndarray)
            and self.ignore.ndim == 2
            and self.ignore.dtype == np.bool_
        ):
            raise OptionError("ignore must be a bool array [H,W], True where nothing counts.")
        if self.tiles is not None:
            object.__setattr__(self, "tiles", check_tiles(self.tiles))
        if self.zoom not in (None, *ZOOMS):
            raise OptionError(f"zoom={self.zoom!r} must be {' or '.join(ZOOMS)}.")
        for name in WORDS:
            object.__setattr__(self, name, clean_words(getattr(self, name), f"a word of {name}"))
        if both := sorted(set(self.look_for) & set(self.ignore_kinds)):
            raise OptionError(f"{both[0]!r} is both looked for and ignored: leave it out of one.")

    @property
    def steers(self) -> bool:
        """Whether some kinds of defects count and others do not."""
        return bool(self.look_for or self.ignore_kinds)

    @property
    def tiling(self) -> str:
        """`tiles`, "off" where nothing was said."""
        return self.tiles or OFF

    def settings(self) -> dict[str, Any]:
        """What decides an answer, in JSON's types; only what is not None."""
        values = {
            name: getattr(self, name)
            for name in ("limit", "min_area", "mm_per_pixel", "roi", "zoom")
        }
        values["ignore"] = self.ignore_id or None
        values["tiles"] = self.tiling if self.tiling != OFF else None
        values["look_for"] = tuple(sorted(self.look_for)) or None
        values["ignore_kinds"] = tuple(sorted(self.ignore_kinds)) or None
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    @property
    def ignore_id(self) -> str:
        """12 hex digits that name the ignored area; "" where there is none."""
        if self.ignore is None:
            return ""
        shape = repr(self.ignore.shape).encode()
        return hashlib.sha256(shape + np.packbits(self.ignore).tobytes()).hexdigest()[:12]

    def crop(self, image: NDArray[_T]) -> NDArray[_T]:
        """What is looked at of an image HxWx3, or of its mask HxW.

        Raises ImageError where it is of another size.
        """
        height, width = image.shape[:2]
        if self.ignore is not None and self.ignore.shape != (height, width):
            raise ImageError(
                f"The image has {width}x{height} pixels and the ignored area was drawn for "
                f"{self.ignore.shape[1]}x{self.ignore.shape[0]}: draw it on a picture of this size."
            )
        if self.roi is None:
            return image
        x, y, w, h = self.roi
        if x + w > width or y + h > height:
            raise ImageError(
                f"The image has {width}x{height} pixels and the roi {x},{y},{w},{h} reaches beyond "
                "it: give another --roi, or pictures of the size that it was chosen on."
            )
        return np.ascontiguousarray(image[y : y + h, x : x + w])

    def ignored(self) -> NDArray[np.bool_] | None:
        """The ignored area within the roi, bool [h,w]."""
        if self.ignore is None or self.roi is None:
            return self.ignore
        x, y, w, h = self.roi
        return self.ignore[y : y + h, x : x + w]

    def area(self, image: Image) -> NDArray[np.bool_] | None:
        """Where something counts in an image, bool [H,W]; None: everywhere."""
        if self.roi is None and self.ignore is None:
            return None
        inside = np.ones(image.shape[:2], np.bool_)
        if self.roi is not None:
            x, y, width, height = self.roi
            inside[:] = False
            inside[y : y + height, x : x + width] = True
        return inside if self.ignore is None else inside & ~self.ignore

    def gate(
        self, options: PromptOptions, shape: tuple[int, ...], tile: float = 1.0
    ) -> PromptOptions:
        """The bundle's options for a view of this shape [h,w], with limit and area from here.

        `tile` is the share of the view that a tile has: the bundle's smallest area is of what CLIP
        looks at, so that tiles see smaller defects.
        """
        options = replace(options, min_area=options.min_area * tile)
        if self.limit is not None:
            options = replace(options, limit=float(self.limit))
        if self.min_area is not None:
            pixels = self.min_area / (self.mm_per_pixel or 1) ** 2
            share = pixels / (shape[0] * shape[1])
            if share >= 1:
                raise ImageError(
                    f"min_area={self.min_area:g} is {pixels:.0f} pixels, as large as the picture: "
                    "give a smaller one."
                )
            options = replace(options, min_area=share)
        return options

    def place(self, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """An array [h,w] of the view in an image of this shape [H,W]; zeros around it."""
        if self.roi is None:
            return values
        x, y, w, h = self.roi
        whole = np.zeros(shape[:2], values.dtype)
        whole[y : y + h, x : x + w] = values
        return whole

    def shift(self, regions: tuple[Region, ...]) -> tuple[Region, ...]:
        """Regions of the view in image coordinates."""
        if self.roi is None:
            return regions
        x, y = self.roi[:2]
        return tuple(
            replace(
                r,
                box=(r.box[0] + x, r.box[1] + y, *r.box[2:]),
                centroid=(r.centroid[0] + x, r.centroid[1] + y),
                contour=tuple((px + x, py + y) for px, py in r.contour),
            )
            for r in regions
        )


def parse_roi(text: str) -> Box:
    """`x,y,width,height` as a command line gives it. Raises ValueError."""
    numbers = tuple(int(part) for part in text.split(","))
    if len(numbers) != 4:
        raise ValueError(text)
    return numbers[0], numbers[1], numbers[2], numbers[3]


def to_calibrate(options: InspectOptions, bundle: str, category: str) -> Calibration:
    """What `calibrate` starts from: made for this bundle (its id), category and options, but for
    the limit that it looks for, and what SAM is shown."""
    settings = {name: value for name, value in options.settings().items() if name in SETTINGS}
    nothing = Promise(1.0, 0.0, 0, 0, 0)
    return Calibration(bundle, category, 0.0, nothing, {}, settings, options.ignore)


def clean_words(words: Iterable[str], what: str) -> tuple[str, ...]:
    """Words without blanks around them, each once. Raises OptionError, which says `what` they are
    for."""
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise OptionError(f'{words!r:.80} cannot be {what}: give words, such as ("crack", "chip").')
    cleaned = tuple(dict.fromkeys(" ".join(word.split()) for word in words))
    for word in cleaned:
        if not word or len(word) > MOST_LETTERS or not word.isprintable():
            raise OptionError(
                f"{word[:40]!r} cannot be {what}: give one to {MOST_LETTERS} letters that can be "
                "printed."
            )
    return cleaned


def asked_of(bundle: Bundle, options: InspectOptions) -> Asked | None:
    """The kinds of defects that count, with all words of the bundle that mean them; None: all.

    Raises OptionError for words the bundle does not know.
    """
    if not options.steers:
        return None
    look_for = bundle.kinds(options.look_for) if options.look_for else None
    return Asked(look_for, bundle.kinds(options.ignore_kinds))


def calibrated(options: InspectOptions, calibration: Calibration | None) -> InspectOptions:
    """The options with those of the calibration, which holds for nothing else but another limit,
    and what SAM is shown.

    Raises CalibrationError where they differ otherwise.
    """
    if calibration is None:
        return options
    settings = dict(calibration.settings)
    made = InspectOptions(
        limit=calibration.limit,
        min_area=settings.get("min_area"),
        mm_per_pixel=settings.get("mm_per_pixel"),
        roi=tuple(settings["roi"]) if "roi" in settings else None,
        ignore=calibration.ignore,
        tiles=settings.get("tiles"),
        look_for=tuple(settings.get("look_for", ())),
        ignore_kinds=tuple(settings.get("ignore_kinds", ())),
    )
    given, known = options.settings(), made.settings()
    if options.tiles == OFF:
        given["tiles"] = None
    for name in sorted(set(given) - {"limit", "zoom"}):
        if given[name] != known.get(name):
            was = known.get(name, "none")
            was = ", ".join(was) if name in WORDS else was
            flag = "ignore-kind" if name == "ignore_kinds" else name.replace("_", "-")
            raise CalibrationError(
                f"The calibration was made with another --{flag} ({was}): leave it out, or "
                "calibrate again with it."
            )
    return replace(made, limit=options.limit or made.limit, zoom=options.zoom)
