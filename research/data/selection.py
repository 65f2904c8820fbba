"""Which images a command works on: a folder's, evenly thinned out, or procedural ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipsam.research.data.datasets import (
    LabelledImage,
    check_gaps,
    open_dataset,
    synthetic_dataset,
)


def select_items(
    dataset: str,
    category: str | None,
    count: int,
    size: int,
    limit: int | None,
    layout: str | None = None,
) -> list[LabelledImage]:
    """The images of a folder, at most `limit` of each defect of each category, or `count` of the
    synthetic set. Raises DatasetError when some of a defect's masks are missing, not all."""
    if dataset in ("synthetic", "synthetic-fine"):
        fine = float(dataset != "synthetic")
        return list(synthetic_dataset(count, size or 256, fine=fine))
    listing = open_dataset(Path(dataset), category, layout)
    check_gaps(listing)
    return _limit(listing.images, limit)


def _limit(items: Sequence[LabelledImage], limit: int | None) -> list[LabelledImage]:
    if limit is None:
        return list(items)
    kept = []
    for kind in sorted({(item.group, item.defect) for item in items}):
        group = [item for item in items if (item.group, item.defect) == kind]
        pick = np.linspace(0, len(group) - 1, min(limit, len(group))).round().astype(int)
        kept += [group[i] for i in pick]
    return kept
