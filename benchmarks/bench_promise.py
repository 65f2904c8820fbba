"""Whether the promise of a calibration is kept: limits drawn again and again from known scores.

    clipsam inspect bundles/tiny path/to/good --category cookie --output out
    clipsam evaluate bundles/tiny synthetic --count 400 --without-mmr --per-image synthetic.csv
    python benchmarks/bench_promise.py out/results.jsonl synthetic.csv

The scores of a file's good parts stand for all good parts there are. Every draw takes n of them
(with replacement, so none is special), sets the limit as `clipsam calibrate` does, and looks up
what share of all of them is above it. A promise at 95 % may be broken in 5 draws of 100.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.calibration.bounds import false_alarm_bound, limit_of, most_above
from clipsam.runtime.commands.parser import command_parser

PARTS = (20, 59, 150, 300)


def good_scores(path: Path) -> NDArray[np.float64]:
    """The scores of an inspection of good parts alone, or of the good images in a file of
    `clipsam evaluate --per-image`."""
    with path.open() as file:
        if path.suffix == ".jsonl":
            rows = map(json.loads, file)
            return np.array([row["score"] for row in rows if "score" in row])
        return np.array([float(r["score"]) for r in csv.DictReader(file) if r["defect"] == "good"])


def simulate(
    scores: NDArray[np.float64], parts: int, rate: float, confidence: float, draws: int
) -> tuple[float, float, NDArray[np.float64]]:
    """The rate asked for or, where the parts are too few, supported; the exact bound of the limit;
    and the realised rate of every draw."""
    rate = max(rate, false_alarm_bound(parts, 0, confidence))
    above = most_above(parts, rate, confidence)
    assert above is not None
    rng = np.random.default_rng([parts, draws])
    limits = [limit_of(rng.choice(scores, parts), above) for _ in range(draws)]
    realised = np.array([(scores > limit).mean() for limit in limits])
    return rate, false_alarm_bound(parts, above, confidence), realised


def main() -> None:
    """Print a table for every file."""
    parser = command_parser(None, __doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--false-alarms", type=float, default=0.05)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--draws", type=int, default=500)
    args = parser.parse_args()
    print("| scores of | good | n | promised | bound | mean | 95th percentile | most | kept |")
    print("| --- " * 9 + "|")
    for path in args.files:
        scores = good_scores(path)
        for parts in PARTS:
            rate, bound, realised = simulate(
                scores, parts, args.false_alarms, args.confidence, args.draws
            )
            shown = [rate, bound, realised.mean(), np.quantile(realised, 0.95), realised.max()]
            cells = " | ".join(f"{100 * value:.1f} %" for value in shown)
            kept = 100 * float((realised <= bound).mean())
            print(f"| {path} | {len(scores)} | {parts} | {cells} | {kept:.1f} % |")


if __name__ == "__main__":
    main()
