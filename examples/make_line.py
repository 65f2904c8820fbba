"""Draw two weeks of a line into a store, to see what `clipsam report` makes of it.

    python examples/make_line.py line/line.db
    clipsam report line/line.db -o line/report.html

Nothing is inspected: parts, maps, scores and labels are drawn from a seed. On the ninth day a tool
begins to wear: scores rise and more parts are scratched. On the fifth day the lamp fails for half
an hour.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from clipsam.runtime.core.files import sha256
from clipsam.runtime.station.schema import iso
from clipsam.runtime.station.store import Store

SIDE = 320
LIMIT = 0.42
DAYS, FIRST_HOUR, HOURS = 14, 5, 16  # of two shifts, UTC
START = datetime(2026, 3, 2, tzinfo=timezone.utc)  # a Monday
WEAR = START + timedelta(days=8, hours=9, minutes=20)
DARK = START + timedelta(days=4, hours=14), START + timedelta(days=4, hours=14, minutes=30)
MILLISECONDS = {"read": 3, "rough": 42, "prompts": 0.4, "encode": 95, "decode": 6, "fuse": 1.2}


def draw_part(rng: np.random.Generator, dark: bool) -> np.ndarray:
    """A turned ring on a mat, [SIDE,SIDE,3] uint8."""
    x, y = (rng.normal(SIDE / 2, 4, 2)).round().astype(int)
    picture = np.full((SIDE, SIDE, 3), (62, 60, 58), np.float32)
    for radius, shade in ((122, 168), (117, 186), (64, 150), (58, 60)):
        cv2.circle(picture, (int(x), int(y)), radius, (shade, shade, shade - 4), -1, cv2.LINE_AA)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    angle = np.arctan2(rows - y, columns - x)
    shine = 1 + 0.10 * np.cos(2 * angle + rng.uniform(0, 6.3)) + 0.03 * np.cos(40 * angle)
    picture = picture * shine[..., None] * rng.normal(1, 0.02) + rng.normal(0, 2.5, picture.shape)
    return np.asarray(np.clip(picture * (0.04 if dark else 1), 0, 255), np.uint8)


def draw_defect(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A scratch or a dent on the ring, in place; the mask [SIDE,SIDE] of it, uint8."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    angle, radius = rng.uniform(0, 6.3), rng.uniform(76, 104)
    middle = SIDE / 2 + radius * np.array([np.cos(angle), np.sin(angle)])
    if rng.random() < 0.6:
        steps = np.cumsum(rng.normal(0, 5, (12, 2)) + rng.normal(0, 3, 2), axis=0)
        points = (middle + steps).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(mask, [points], False, 255, int(rng.integers(1, 4)))
    else:
        axes = rng.integers(4, 14, 2).tolist()
        cv2.ellipse(mask, middle.astype(int).tolist(), axes, rng.uniform(0, 180), 0, 360, 255, -1)
    picture[mask > 0] = (picture[mask > 0] * rng.uniform(0.35, 0.7)).astype(np.uint8)
    return mask


def draw_map(rng: np.random.Generator, mask: np.ndarray, score: float) -> np.ndarray:
    """A smooth map [SIDE,SIDE] in [0,1] whose highest value is the score."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, (40, 40)).astype(np.float32), (0, 0), 3)
    noise = cv2.resize(np.clip(noise, 0, None) / noise.max(), (SIDE, SIDE))
    spread = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 5)
    if spread.max() == 0:
        return np.asarray(noise * score)
    drawn = np.maximum(spread / spread.max() * score, noise * min(score, 0.25))
    return np.asarray(np.clip(drawn, 0, 1))


def regions_of(values: np.ndarray) -> list[dict[str, Any]]:
    """Boxes of what is above the limit, as a result has them."""
    found, _, stats, centres = cv2.connectedComponentsWithStats((values > LIMIT).astype(np.uint8))
    return [
        {
            "box": stats[k, :4].tolist(),
            "area": int(stats[k, 4]),
            "centroid": centres[k].tolist(),
            "contour": [],
            "score": float(values[stats[k, 1] :, stats[k, 0] :].max()),
        }
        for k in range(1, found)
    ]


def judge(rng: np.random.Generator, at: datetime) -> dict[str, Any]:
    """What the line came to for one part taken at `at`."""
    worn = min(1.0, max(0.0, (at - WEAR) / timedelta(hours=30)))
    if DARK[0] <= at < DARK[1]:
        return {"verdict": "not_judged", "reasons": ("black",), "message": "The picture is black."}
    if rng.random() < 0.0008:
        message = "The file is damaged: copy it again."
        return {"verdict": "not_judged", "reasons": ("unreadable",), "message": message}
    defective = rng.random() < 0.011 + 0.05 * worn
    score = rng.beta(9, 6) * 0.6 + 0.25 if defective else rng.beta(5, 24) * (1 + 0.30 * worn)
    score = float(min(score, 0.99))
    verdict = "anomalous" if score > LIMIT else "good"
    label = None
    if verdict == "anomalous" or defective or rng.random() < 0.01:
        label = "defective" if defective else "good"
        label = label if rng.random() < 0.6 else None  # nobody looks at every part
    sam = verdict == "anomalous"
    stages = [s for s in MILLISECONDS if sam or s not in ("encode", "decode")]
    timings = {s: round(float(MILLISECONDS[s] * rng.lognormal(0, 0.12)), 3) for s in stages}
    timings["total"] = round(sum(timings.values()), 3)
    timings["latency"] = round(timings["total"] + float(rng.exponential(6)), 3)
    return {
        "verdict": verdict, "score": score, "limit": LIMIT, "map_limit": LIMIT, "label": label,
        "timings": timings, "refined": sam, "late": False, "mark": defective,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="the store to make; it must not be there yet")
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--keep-good", type=float, default=0.05, help="share of good pictures kept")
    args = parser.parse_args()
    if args.store.exists():
        print(f"error: {args.store} is there already: name another file.", file=sys.stderr)
        return 1
    pictures = args.store.parent / f"{args.store.stem}.pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(9)
    seconds = np.sort(rng.uniform(0, DAYS * HOURS * 3600, args.parts))
    with Store(args.store, create=True) as store, store.transaction():
        for number, second in enumerate(seconds.tolist(), start=1):
            day, rest = divmod(second, HOURS * 3600)
            at = START + timedelta(days=day, hours=FIRST_HOUR, seconds=rest)
            values = judge(rng, at)
            mark = values.pop("mark", False)
            unreadable = values.get("reasons") == ("unreadable",)
            kept = not unreadable and (
                values["verdict"] != "good" or values["label"] or rng.random() < args.keep_good
            )
            if kept:
                values |= draw(rng, pictures, number, values, mark)
            store.add_judged(
                f"cam1/{at:%Y-%m-%d}/ring-{number:05}.jpg", "ring", serial=f"R{number:06}",
                taken_at=iso(at), judged_at=iso(at), bundle="092a6469af58",
                calibration="a41c6f20d9b3", version="0.1.0",
                provider="cpu", width=SIDE, height=SIDE, filed=True,
                precisions={"clip_umci": "int8-dynamic", "sam_encoder": "fp32"}, **values,
            )  # fmt: skip
            if number % 500 == 0:
                print(f"\r{number} of {args.parts}", end="", file=sys.stderr, flush=True)
    print(f"\r{args.parts} parts in {args.store}", file=sys.stderr)
    return 0


def draw(
    rng: np.random.Generator, folder: Path, number: int, values: dict[str, Any], mark: bool
) -> dict[str, Any]:
    """Write the picture of a part and its map; what the row says of them."""
    picture = draw_part(rng, values["verdict"] == "not_judged")
    mask = draw_defect(rng, picture) if mark else np.zeros((SIDE, SIDE), np.uint8)
    names = {"picture": f"{number:08}-ring.jpg"}
    cv2.imwrite(str(folder / names["picture"]), picture, [cv2.IMWRITE_JPEG_QUALITY, 85])
    more: dict[str, Any] = {"sha256": sha256(folder / names["picture"])}
    if "score" in values:
        names["map"] = f"{number:08}-ring.map.png"
        scores = draw_map(rng, mask, values["score"])
        cv2.imwrite(str(folder / names["map"]), (scores * 255).round().astype(np.uint8))
        more["regions"] = tuple(regions_of(scores))
    return {key: f"{folder.name}/{name}" for key, name in names.items()} | more


if __name__ == "__main__":
    raise SystemExit(main())
