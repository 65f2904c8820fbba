"""Sums of an evaluation and the rows of its tables: by defect or category, mean, image level.

Pixels go into one histogram a row (`streamed_metrics`) and are forgotten; of an image only its name
and a few numbers stay, so the size of a data set is bounded by time alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.data.samples import LabelledImage
from clipsam.research.evaluation.metrics import pixel_metrics
from clipsam.research.evaluation.streamed_metrics import PixelHistogram

Row = dict[str, float | str]
METRICS = {"auroc": "AUROC", "ap": "AP", "f1_max": "F1-max", "pro": "PRO"}
IMAGE_METRICS = {"auroc": "image AUROC", "ap": "image AP", "f1_max": "image F1-max"}
_COLUMNS = [
    "set",
    "images",
    *METRICS,
    *(f"{k}_error" for k in METRICS),
    "pro_200",
    *(f"image_{k}" for k in IMAGE_METRICS),
]
FACTS = ["model", "resolution", "norm"]  # no figure is without them in a file


@dataclass(frozen=True)
class Measured:
    """One image after inspection."""

    item: LabelledImage
    score: float  # `Result.score`, whatever the map was normalised to
    anomalous: bool  # the verdict
    judged: bool = True  # neither: a picture that may not be called good
    dice: float | None = None  # F1 of the decided mask against the truth, of a defective image

    @property
    def error(self) -> float:
        """How wrong the answer is, 0..1: a good image's score; one minus the Dice of a defective
        one, or one minus its score where nobody marked the defect."""
        if self.item.good:
            return self.score
        return 1 - (self.score if self.dice is None else self.dice)


class Tally:
    """Everything measured so far.

    Args:
      size: side to which maps and masks are brought before their pixels count; 0: as they are.
      by_defect: keep the defects of a category apart (about 5 MB each).
    """

    def __init__(self, size: int = 0, by_defect: bool = True) -> None:
        self.size, self.by_defect = size, by_defect
        self.images: list[Measured] = []
        self.pixels: dict[tuple[str, str], PixelHistogram] = {}
        self.range = (float("inf"), float("-inf"))  # of all final maps
        self.limits: set[float] = set()  # that verdicts were taken at

    def add(
        self,
        item: LabelledImage,
        final: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
        score: float,
        *,
        anomalous: bool = False,
        judged: bool = True,
        found: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one image: its final map [H,W] in [0,1], its true mask [H,W] (None: unknown), its
        score, its verdict and, if decided, the mask found [H,W]."""
        dice = None
        if mask is not None and found is not None and not item.good:
            marked = int(mask.sum()) + int(found.sum())
            dice = 2 * int((mask & found).sum()) / marked if marked else 0.0
        low, high = float(final.min()), float(final.max())
        self.range = (min(low, self.range[0]), max(high, self.range[1]))
        self.images.append(Measured(item, score, anomalous, judged, dice))
        if mask is None:
            return
        key = (item.group, item.defect if self.by_defect else "")
        if key not in self.pixels:
            self.pixels[key] = PixelHistogram()
        self.pixels[key].add(*at_size(final, mask, self.size))

    @property
    def limit(self) -> float | None:
        """The one limit of all verdicts; None where there is not one."""
        return next(iter(self.limits)) if len(self.limits) == 1 else None

    def stretch(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Min-max over every map counted so far."""
        low, high = self.range
        return np.asarray((values - low) / max(high - low, 1e-12), np.float32)

    def pooled(self, group: str | None = None, *defects: str) -> PixelHistogram | None:
        """The pixels of a category (None: of all), of some of its defects if named."""
        chosen = [
            histogram
            for (of_group, of_defect), histogram in self.pixels.items()
            if group in (None, of_group) and (not defects or of_defect in defects)
        ]
        return reduce(add, chosen) if chosen else None


def at_size(
    final: NDArray[np.float32], mask: NDArray[np.bool_], size: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Map and mask brought to size x size pixels by area (0: left as they are)."""
    if not size:
        return final, mask
    small = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    shrunk = np.asarray(cv2.resize(final, (size, size), interpolation=cv2.INTER_AREA))
    return np.clip(shrunk, 0, 1), small > 0.5  # averaging may round past 1


def table(tally: Tally) -> list[Row]:
    """The rows of a data set.

    One category: a row per defect (with the good images' pixels), their mean, all pixels pooled,
    the image level. Several: a row per category, pixels pooled, with its image-level figures, then
    the mean of the categories, as published tables have it. A figure that is not defined is
    missing from its row.
    """
    groups = sorted({m.item.group for m in tally.images})
    return _by_category(tally, groups) if len(groups) > 1 else _by_defect(tally)


def _by_category(tally: Tally, groups: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for group in groups:
        images = [m for m in tally.images if m.item.group == group]
        level = {f"image_{k}": v for k, v in image_level(images).items()}
        rows.append({"set": group, "images": len(images), **_pixels(tally.pooled(group)), **level})
    return [*rows, {"set": "mean", "images": len(tally.images), **_mean(rows)}]


def _by_defect(tally: Tally) -> list[Row]:
    good = [m for m in tally.images if m.item.good]
    defects = sorted({m.item.defect for m in tally.images if not m.item.good})
    rows: list[Row] = []
    for defect in defects:
        count = sum(m.item.defect == defect for m in tally.images)
        unknown = all(not m.item.has_truth for m in tally.images if m.item.defect == defect)
        pixels = None if unknown else tally.pooled(None, defect, "good")
        rows.append({"set": defect, "images": count, **_pixels(pixels)})
    if len(rows) > 1:
        rows.append({"set": "mean", "images": len(tally.images) - len(good), **_mean(rows)})
        rows.append({"set": "pooled", "images": len(tally.images), **_pixels(tally.pooled())})
    level = image_level(tally.images)
    if level:
        rows.append({"set": "image level", "images": len(tally.images), **level})
    return rows


def image_level(images: Sequence[Measured]) -> dict[str, float]:
    """AUROC, AP and F1-max of the image scores, exact; empty without good or defective images."""
    labels = np.array([not m.item.good for m in images])
    if labels.all() or not labels.any():
        return {}
    return pixel_metrics(np.array([m.score for m in images], np.float32), labels)


def _pixels(histogram: PixelHistogram | None) -> dict[str, float]:
    if histogram is None or not histogram.complete:
        return {}
    errors = {f"{k}_error": v for k, v in histogram.errors().items()}
    return {**histogram.metrics(), **errors, "pro_200": histogram.pro_200()}


def _mean(rows: Sequence[Row]) -> Row:
    """The unweighted mean of every figure over the rows that have it; so are error bounds."""
    keys = [key for key in _COLUMNS[2:] if any(key in row for row in rows)]
    return {key: float(np.mean([float(row[key]) for row in rows if key in row])) for key in keys}


def dataset_row(rows: Sequence[Row]) -> Row:
    """The row that stands for the whole set in a published table: the mean over categories, or
    the pooled pixels of the only one."""
    for name in ("pooled", "mean"):
        for row in rows:
            if row["set"] == name:
                return row
    return rows[0] if rows else {}


def verdicts(images: Sequence[Measured], limit: float | None) -> str:
    """False alarms and recall at the limit, and the limit at which F1 would be highest."""
    at = "" if limit is None else f"at the limit {limit:.4f} "
    parts, scores = [], {}
    for name, share, wanted in (("good", "false alarms", True), ("defective", "recall", False)):
        group = [m for m in images if m.item.good == wanted]
        if group:
            scores[name] = np.array([m.score for m in group])
            hits, unjudged = sum(m.anomalous for m in group), sum(not m.judged for m in group)
            part = f"{hits} of {len(group)} {name} images ({share} {100 * hits / len(group):.0f} %)"
            parts.append(part + (f" and {unjudged} not judged" if unjudged else ""))
    lines = [f"{at}called anomalous: " + ", ".join(parts)]
    if len(scores) == 2:
        best, f1 = best_limit(scores["good"], scores["defective"])
        lines.append(f"F1 is highest at the limit {best:.4f} ({f1:.3f}), known only with defects")
    return "\n".join(lines)


def best_limit(good: NDArray[np.float64], defective: NDArray[np.float64]) -> tuple[float, float]:
    """The score above which calling parts anomalous gives the highest F1, and that F1.

    Midway between the two scores it separates.
    """
    scores = np.concatenate([good, defective])
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(np.arange(len(scores))[order] >= len(good))
    f1 = 2 * true / (np.arange(1, len(scores) + 1) + len(defective))
    ends = np.append(np.diff(scores[order]) != 0, True)  # ties go together
    at = int(np.where(ends, f1, -1).argmax())
    last = float(scores[order][at])
    if at + 1 == len(scores):
        return float(np.nextafter(last, -np.inf)), float(f1[at])
    return (last + float(scores[order][at + 1])) / 2, float(f1[at])


def format_rows(rows: Sequence[Mapping[str, float | str]], first: str = "set") -> str:
    """The table as Markdown; `first` heads the column of names. What is missing stays empty."""
    shown = dict(METRICS)
    if any("image_auroc" in row for row in rows):
        shown |= {f"image_{key}": name for key, name in IMAGE_METRICS.items()}
    lines = [f"| {first} | images | " + " | ".join(shown.values()) + " |"]
    lines.append("| --- " * (2 + len(shown)) + "|")
    for row in rows:
        figures = " | ".join(f"{row[k]:.3f}" if k in row else "" for k in shown)
        lines.append(f"| {row['set']} | {row['images']} | {figures} |")
    return "\n".join(lines)


def format_errors(rows: Sequence[Mapping[str, float | str]]) -> str:
    """One line: how far the binned figures can be from the exact ones."""
    worst = {
        name: max((float(row[f"{key}_error"]) for row in rows if f"{key}_error" in row), default=0)
        for key, name in METRICS.items()
    }
    bounds = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    return f"scores are binned; proven largest distance from the exact figures: {bounds}"


def to_csv(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = (*_COLUMNS, *FACTS)
) -> bytes:
    """The rows as CSV; a figure that is missing is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def per_image_csv(images: Sequence[Measured]) -> bytes:
    """Every image, the worst answer first (`Measured.error`)."""
    rows = [
        {
            "image": m.item.name,
            "category": m.item.group or m.item.category,
            "defect": m.item.defect,
            "error": f"{m.error:.4f}",
            "score": f"{m.score:.4f}",
            "verdict": "anomalous" if m.anomalous else "good" if m.judged else "not_judged",
            "right": "yes" if m.judged and m.anomalous != m.item.good else "no",
            "dice": "" if m.dice is None else f"{m.dice:.4f}",
        }
        for m in sorted(images, key=lambda m: (-m.error, m.item.group, m.item.name))
    ]
    return to_csv(
        rows, ["image", "category", "defect", "error", "score", "verdict", "right", "dice"]
    )
