"""Whether reference parts drawn among the good parts spoil the promise of their limit.

    python benchmarks/bench_crossfit.py bundles/tiny path/to/train/good path/to/test/good \\
        --category cookie

Every draw splits the good parts: n calibrate, up to half of them as reference parts that are
compared with each other (`runtime/calibration/scores.py`), and the others are new. If the new ones
are like those that calibrated, 1 / (n + 1) of them score above the highest of n on average.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from clipsam.runtime import ClipSAM, read_image
from clipsam.runtime.calibration.scores import (
    balanced_weight,
    choose_reference,
    measure_good,
    measure_other,
)
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.results.jobs import find_jobs


def main() -> None:
    """Print the table."""
    parser = command_parser(None, __doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("good", type=Path, nargs="+")
    parser.add_argument("--category", default="object")
    parser.add_argument("--parts", type=int, nargs="+", default=[16, 24, 32])
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--every", type=int, default=4, help="use every Nth token, to be quick")
    args = parser.parse_args()
    with ClipSAM.open(args.bundle) as model:
        seen = [model.observe(read_image(j.source), args.category) for j in find_jobs(args.good)]
    seen = [replace(one, tokens=one.tokens[:: args.every]) for one in seen]
    print(
        "| n | reference | expected | map alone | with reference | limit set by a reference part |"
    )
    print("| --- " * 6 + "|")
    for parts in args.parts:
        rates = []
        for draw in range(args.draws):
            order = np.random.default_rng([draw, parts]).permutation(len(seen))
            good = [seen[i] for i in order[:parts]]
            reference = choose_reference(good, min(16, parts // 2), draw)
            ours = measure_good(good, reference)
            new = measure_other([seen[i] for i in order[parts:]], reference)
            weight, own = balanced_weight(ours), np.unique(reference.parts)
            limits = ours.scores(weight)
            rates.append(
                [
                    (new.map > ours.map.max()).mean(),
                    (new.scores(weight) > limits.max()).mean(),
                    limits.argmax() in own,
                ]
            )
        alone, both, share = np.mean(rates, axis=0)
        cells = " | ".join(
            f"{100 * value:.1f} %" for value in (1 / (parts + 1), alone, both, share)
        )
        print(f"| {parts} | {min(16, parts // 2)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
