"""The training benchmark runs at small sizes and measures the loop's own step."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import bench_training
import pytest

from clipsam.research.training import loop

SMALL = [
    "--visual_dim", "12", "--text_dim", "8", "--hidden_dim", "6", "--stages", "2", "--grid", "6",
    "--image_size", "24", "--batch_size", "2", "--steps", "4", "--warmup", "2", "--device", "cpu",
]  # fmt: skip


def test_every_step_trains_and_the_first_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses: list[float] = []
    real = loop.take_step

    def spy(*arguments: Any) -> tuple[float, dict[str, float]]:
        found = real(*arguments)
        losses.append(found[0])
        return found

    monkeypatch.setattr(bench_training, "take_step", spy)
    out = tmp_path / "figures.csv"
    assert bench_training.main([*SMALL, "--csv", str(out), "--cache_path", str(tmp_path)]) == 0
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert len(set(losses)) == 4 + 2  # every step changed the weights
    assert 0 < float(row["step_s_min"]) <= float(row["step_s"]) <= float(row["step_s_max"])
    assert float(row["VisA cache_gb"]) == round(2162 * (2 * 2 * 6 * 6 * 12 + 24 * 24) / 1e9, 2)
    assert row["VisA steps"] == "6486"  # six epochs in batches of 2
    assert 0.01 < float(row["peak_rss_gb"]) < 4
    assert "VisA steps: 6486" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["figures.csv"]  # its cache is gone
