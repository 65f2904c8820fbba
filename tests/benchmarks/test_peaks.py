"""What shares of a peak are taken of: operations counted, and the best of every product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import peaks


def test_flops_are_those_counted_by_hand() -> None:
    """ViT-H's encoder: products of weights and of attention; the rest is under one percent."""
    flops = peaks.count_flops("paper", boxes=4)
    tokens, padded, width, window = 64**2, 70**2, 1280, 14**2
    by_hand = 32 * 16 * tokens * width**2  # MLPs
    by_hand += 8 * (28 * padded + 4 * tokens) * width**2  # queries, keys, values, projection
    by_hand += 4 * 4 * tokens**2 * width + 28 * 4 * 25 * window**2 * width  # attention
    assert flops["sam_encoder"] == pytest.approx(by_hand, rel=0.01)
    assert flops["sam_encoder"] > by_hand


def test_the_best_round_of_every_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, call in peaks._products("cpu", 8):
        if precision == "fp32":  # of matrices of ones
            found: Any = call()
            assert (np.asarray(found) == np.full((8, 8), 8)).all()
    seconds = iter([0.5, 0.25, *[1.0] * 100])
    monkeypatch.setattr(peaks, "_seconds", lambda call: next(seconds))
    products = peaks.measure_peaks("cpu", 32)
    assert products[0] == {
        "backend": "PyTorch", "precision": "fp32", "status": "measured",
        "peak_tflops": round(2 * 32**3 / 0.25 / 1e12, 5),
    }  # fmt: skip
