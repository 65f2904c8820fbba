"""The training benchmark runs at small sizes and measures the loop's own step."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_training.py"
SMALL = [
    "--visual_dim", "12", "--text_dim", "8", "--hidden_dim", "6", "--stages", "2", "--grid", "6",
    "--image_size", "24", "--batch_size", "2", "--steps", "4", "--warmup", "2", "--device", "cpu",
]  # fmt: skip


def test_the_training_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("bench_training", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "figures.json"
    assert module.main([*SMALL, "--json", str(out), "--cache_path", str(tmp_path)]) == 0
    report = json.loads(out.read_text())
    assert len(report["step_s"]) == len(report["read_s"]) == 4  # the first two are not counted
    assert len(set(report["losses"])) == 6  # every step changed the weights
    assert report["cached_bytes_per_image"] == 2 * 2 * 6 * 6 * 12 + 24 * 24
    assert report["peak_rss_bytes"] > 10e6
    printed = capsys.readouterr().out
    assert "VisA: 6 epochs of 2162 images are 6486 steps" in printed  # in batches of 2
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # its cache is gone
