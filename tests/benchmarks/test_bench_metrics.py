"""The metrics benchmark runs on small pictures, and fails where a figure exceeds its bound."""

from __future__ import annotations

import csv
from pathlib import Path

import bench_metrics
import pytest

SMALL = ["--images", "4", "--side", "64"]


def test_the_stream_is_counted_at_every_tenth(tmp_path: Path) -> None:
    out = tmp_path / "stream.csv"
    assert bench_metrics.main([*SMALL, "--stream", "40", "--csv", str(out)]) == 0
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["images"]) for line in lines] == list(range(4, 41, 4))
    seconds = [float(line["cpu_s"]) for line in lines]
    assert seconds == sorted(seconds)
    assert {line["side"] for line in lines} == {"64"}
    assert all(line["versions"] and float(line["memory_mb"]) > 10 for line in lines)


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
