"""The metrics benchmark runs on small pictures, and fails where a figure exceeds its bound."""

from __future__ import annotations

import bench_metrics
import pytest

SMALL = ["--images", "4", "--side", "64"]


def test_a_figure_beyond_its_bound_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = bench_metrics.exact
    monkeypatch.setattr(
        bench_metrics,
        "exact",
        lambda *arrays: {**real(*arrays), "auroc": real(*arrays)["auroc"] - 0.5},
    )
    assert bench_metrics.main(SMALL) == 1
    assert "further from the exact one than its bound" in capsys.readouterr().err
