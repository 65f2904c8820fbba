"""What an evaluation says of limits: the best one in hindsight, and verdicts at the one taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipsam.research.data.datasets import LabelledImage
from clipsam.research.evaluation.tables import Measured, best_limit, verdicts


@pytest.mark.parametrize("seed", range(20))
def test_the_best_limit_is_that_of_a_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    good, bad = (np.round(rng.normal(mean, 1, 12), 1) for mean in (0, 1))
    limit, f1 = best_limit(good, bad)

    def at(level: float) -> float:
        true, false = (bad > level).sum(), (good > level).sum()
        return float(2 * true / (true + false + len(bad)))

    every = np.concatenate([good, bad, [-9]])
    assert at(limit) == pytest.approx(f1)
    assert f1 == pytest.approx(max(map(at, every)))


def test_verdicts_are_counted_at_the_limit() -> None:
    def item(defect: str) -> LabelledImage:
        return LabelledImage("x", defect, "object", Path("a"), Path("b"))

    images = [
        Measured(item("good"), 0.2, False),
        Measured(item("good"), 0.7, True),
        Measured(item("bent"), 0.8, True),
        Measured(item("bent"), 0.1, False, judged=False),
    ]
    told = verdicts(images, 0.6).splitlines()
    assert told[0] == (
        "at the limit 0.6000 called anomalous: 1 of 2 good images (false alarms 50 %), "
        "1 of 2 defective images (recall 50 %) and 1 not judged"
    )
    assert told[1].startswith("F1 is highest at the limit 0.7500 (0.667)")
    assert verdicts(images[:2], None) == (
        "called anomalous: 1 of 2 good images (false alarms 50 %)"
    )
