"""A store with a few drawn parts, for the tests of the report."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clipsam.runtime.core.files import sha256
from clipsam.runtime.station.schema import iso
from clipsam.runtime.station.store import Store

START = datetime(2026, 3, 2, 6, tzinfo=timezone.utc)
LIMIT = 0.5
HOSTILE = (
    "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 2'>{{ 7 * 7 }}.png"
)
NOT_UNICODE = b"cam\xff.png".decode("utf-8", "surrogateescape")


def draw_store(folder: Path, parts: int = 120, worse_from: int = 60) -> Path:
    """A store of a part every ten minutes, from `worse_from` on one in two bad.

    Part 5 could not be judged, part 7 has a name that tries to be a script; those divisible by ten
    carry a label, of which one disagrees with the verdict.
    """
    path = folder / "line.db"
    pictures = folder / "line.pictures"
    pictures.mkdir(parents=True)
    with Store(path, create=True) as store, store.transaction():
        for number in range(1, parts + 1):
            bad = number > worse_from and number % 2 == 0
            score = round((0.6 if bad else 0.1) + number / 1000, 4)
            name = HOSTILE if number == 7 else f"cam1/part-{number:04}.png"
            at = iso(START + timedelta(minutes=10 * number))
            ran = {"bundle": "b1", "calibration": "c1", "provider": "cpu", "version": "0.1.0"}
            values: dict[str, Any] = {
                "verdict": "not_judged",
                "reasons": ["black"],
                "message": "Dark.",
            }
            if number != 5:
                values = {
                    "verdict": "anomalous" if bad else "good", "score": score,
                    "limit": LIMIT, "map_limit": LIMIT,
                    "timings": {"rough": 40 + number / 10, "total": 41 + number / 10},
                    "width": 64, "height": 48, **_draw(pictures, number, score if bad else 0.0),
                }  # fmt: skip
            if number % 10 == 0:
                values["label"] = "defective" if bad or number == 30 else "good"
            category = "<b>nut</b>" if number % 3 == 0 else "ring"
            store.add_judged(
                name, category, taken_at=at, serial=f"S{number}", filed=True, **ran, **values
            )
        store.event("started", "The station began <i>here</i>.")
    return path


def _draw(folder: Path, number: int, peak: float) -> dict[str, Any]:
    """Write a picture [48,64] and its map; the fields of the part that tell of them."""
    picture = np.full((48, 64, 3), 90 + number % 40, np.uint8)
    scores = np.zeros((48, 64), np.float32)
    scores[10:22, 20:40] = peak
    names = {"picture": f"{number:08}.png", "map": f"{number:08}.map.png"}
    cv2.imwrite(str(folder / names["picture"]), picture)
    cv2.imwrite(str(folder / names["map"]), (scores * 255).astype(np.uint8))
    region = {"box": [20, 10, 20, 12], "area": 240, "score": peak}
    return {key: f"{folder.name}/{name}" for key, name in names.items()} | {
        "sha256": sha256(folder / names["picture"]),
        "regions": [region] if peak else [],
    }
