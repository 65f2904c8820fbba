"""What an inspection returns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOOD, ANOMALOUS, NOT_JUDGED = VERDICTS = ("good", "anomalous", "not_judged")

# Why an image may not be called good. Only the first four can be known without a calibration, and
# the first two belong to files: they have no Result, but a row in the results.
UNREADABLE, DAMAGED, BLACK, BURNT_OUT = "unreadable", "damaged", "black", "burnt out"
EMPTY, OTHER, BLURRED, MISPLACED = "empty", "not this product", "blurred", "out of place"
REASONS = (UNREADABLE, DAMAGED, BLACK, BURNT_OUT, EMPTY, OTHER, BLURRED, MISPLACED)


@dataclass(frozen=True)
class Region:
    """One anomalous region, in pixels of the image."""

    box: tuple[int, int, int, int]  # x, y, width, height
    area: int  # pixels
    centroid: tuple[float, float]  # (x, y)
    contour: tuple[tuple[int, int], ...]  # (x, y) of its outline, clockwise or not, closed
    score: float  # highest value of the final map within it
    # Words for it, "unknown" among them, and their probabilities, most probable first, without
    # those below 0.01; empty where the bundle names nothing.
    kinds: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """The most probable word; "" where there are none."""
        return next(iter(self.kinds), "")


@dataclass(frozen=True)
class Result:
    """The verdict on one image and everything it rests on.

    `verdict == "anomalous"` exactly when `score > limit`, and then there is a region; else it is
    "good", or "not_judged" where there are `reasons`. Score and limit come from CLIP and UMCI (and
    reference parts) alone, so SAM never changes a verdict.

    `score_map` float32 [H,W] in [0,1] and `mask` bool [H,W] are arrays in image coordinates; they
    are not part of the JSON. Everything else is.
    """

    verdict: str  # one of VERDICTS
    score: float  # the highest level at which the rough map has a component of `min_area`
    limit: float  # what the score of a good part does not exceed
    regions: tuple[Region, ...]  # largest evidence first
    category: str
    height: int
    width: int
    prompts: int  # q, boxes given to SAM
    dropped: int  # components beyond the most boxes SAM is given
    # Whether SAM redrew the rough map. If not: there was nothing to redraw (`prompts` is 0), or no
    # time for it (`late`).
    refined: bool
    norm: str  # the scale of score_map: "fixed" or "image"
    bundle: str  # id of the bundle
    # ms: (read), rough, prompts, encode, decode, fuse; total, their sum; latency, since the image
    # was taken, with what it waited for others
    timings: Mapping[str, float]
    # What ran, as `ClipSAM` has it; empty where no bundle did.
    provider: str = field(default="", kw_only=True)
    device_id: int | None = field(default=None, kw_only=True)  # of a GPU
    precisions: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    late: bool = field(default=False, kw_only=True)  # SAM was left out to keep the deadline
    reasons: tuple[str, ...] = field(default=(), kw_only=True)  # of REASONS
    map_limit: float = field(default=0.0, kw_only=True)  # where score_map passes the limit
    min_area: int = field(default=1, kw_only=True)  # the smallest defect that counts, pixels
    tiles: str = field(default="off", kw_only=True)  # columns x rows beside the whole, as "3x2"
    # Crops that SAM was shown; 0: the whole, or nothing.
    crops: int = field(default=0, kw_only=True)
    roi: tuple[int, int, int, int] | None = field(default=None, kw_only=True)  # x, y, width, height
    ignore: str = field(default="", kw_only=True)  # names the ignored area; "": none
    look_for: tuple[str, ...] = field(default=(), kw_only=True)  # words; (): whatever there is
    ignore_kinds: tuple[str, ...] = field(default=(), kw_only=True)
    # What would have been found and was not asked for, with its kinds; neither score nor map nor
    # mask knows of it.
    ignored: tuple[Region, ...] = field(default=(), kw_only=True)
    calibration: str = field(default="", kw_only=True)  # id of the calibration; "": none
    # Largest distance from the reference parts, 0..2; None where there are none.
    distance: float | None = field(default=None, kw_only=True)
    score_map: NDArray[np.float32] = field(repr=False, compare=False)
    mask: NDArray[np.bool_] = field(repr=False, compare=False)

    @property
    def anomalous(self) -> bool:
        """Whether the verdict is "anomalous"."""
        return self.verdict == ANOMALOUS

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, in JSON's types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        del values["score_map"], values["mask"]
        for name in ("regions", "ignored"):
            values[name] = [_region_dict(region) for region in values[name]]
        for name in ("reasons", "look_for", "ignore_kinds"):
            values[name] = list(values[name])
        values["roi"] = self.roi and list(self.roi)
        values["timings"], values["precisions"] = dict(self.timings), dict(self.precisions)
        return values

    def to_json(self) -> str:
        """One line of JSON; `from_json` with the two arrays brings the result back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(
        cls, text: str, score_map: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> Result:
        """Inverse of `to_json`. Raises ValueError when fields are missing or unknown."""
        values = json.loads(text)
        try:
            for name in ("regions", "ignored"):
                values[name] = tuple(_region(r) for r in values[name])
            for name in ("reasons", "look_for", "ignore_kinds"):
                values[name] = tuple(values[name])
            values["roi"] = values["roi"] and tuple(values["roi"])
            return cls(**values, score_map=score_map, mask=mask)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a result of this version ({error})") from error


def _region_dict(region: Region) -> dict[str, Any]:
    return {
        **{f.name: getattr(region, f.name) for f in fields(region)},
        "kinds": dict(region.kinds),
    }


def _region(values: Mapping[str, Any]) -> Region:
    return Region(
        box=tuple(values["box"]),
        area=values["area"],
        centroid=tuple(values["centroid"]),
        contour=tuple((x, y) for x, y in values["contour"]),
        score=values["score"],
        kinds=dict(values["kinds"]),
    )
