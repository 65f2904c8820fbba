"""The pure parts of `benchmarks/bench_sam_cpu.py`, and a row of it on a small graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.toy_bundle import write_graph

from clipsam.runtime.backends.base import TensorSpec

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import bench_sam_cpu

        yield bench_sam_cpu


def test_the_largest_difference(bench: ModuleType) -> None:
    expected = {"a": np.array([0.0, -4.0]), "b": np.array([100.0, 1.0])}
    assert bench.off_by(expected, expected) == 0
    assert bench.off_by({"a": np.array([0.0, -3.0]), "b": expected["b"]}, expected) == 0.25
    assert bench.off_by({**expected, "b": np.array([100.0, np.nan])}, expected) == np.inf


def test_milliseconds_a_prompt(bench: ModuleType) -> None:
    """The first run of a process, and its slower half, do not count."""
    reports = [{"cpu_s": [9.0, 0.4, 0.8, 0.6, 7.0]}, {"cpu_s": [9.0, 1.0]}, {"cpu_s": [2.0]}]
    found = bench.per_prompt(reports, 2)
    assert found == {"ms_prompt": 500.0, "ms_prompt_min": 250.0, "ms_prompt_max": 1000.0}


def test_a_row_that_does_not_come_back(bench: ModuleType, tmp_path: Path) -> None:
    job = bench.SamJob(str(tmp_path / "none.onnx"), str(tmp_path / "out.npz"), 1, 1)
    assert "failed" in bench.run_row(job)


def test_the_options(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    args = bench.parse(["--quick", "--attention", "stock"])
    assert (args.runs, args.rounds, args.attention) == (1, 1, ["stock"])
    with pytest.raises(SystemExit):
        bench.parse(["--prompts", "0"])
    assert "1 or more" in capsys.readouterr().err


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """An "encoder": the picture's bytes as floats."""
    path = tmp_path / "product.onnx"
    image = TensorSpec("image", "uint8", (1, 32, 32, 3))
    size = TensorSpec("valid_size", "int64", (2,))
    outputs = (TensorSpec("embedding", "float32", (1, 32, 32, 3)), TensorSpec("s", "int64", (2,)))
    nodes: list[Any] = [
        ("Cast", ["image"], "embedding", {"to": 1}),
        ("Identity", ["valid_size"], "s", {}),
    ]
    write_graph(path, (image, size), outputs, nodes, {})
    return path


def test_rows_that_differ_fail_the_run(
    bench: ModuleType,
    product: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "export", lambda *_: {"encoder stock": product})
    csv = tmp_path / "out.csv"
    command = ["--attention", "stock", "--prompts", "--quick", "--csv", str(csv)]
    assert bench.main(command) == 0
    lines = csv.read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["encoder", "stock", "on", "measured"], ["encoder", "stock", "off", "measured"]
    ]  # fmt: skip
    assert "| stock | on |" in capsys.readouterr().out
    found = iter([0.0, 0.5])
    monkeypatch.setattr(bench, "off_by", lambda *_: next(found))
    assert bench.main(command) == 1
    assert "'agrees': False" in capsys.readouterr().err


def test_a_decoders_inputs(bench: ModuleType) -> None:
    row = sys.modules["sam_cpu_row"]
    job = row.SamJob("", "", 1, 1, prompts=3, points=5)
    feeds = row.feeds_of(job, {"embedding": [1, 8, 4, 4]})
    assert feeds["embedding"].shape == (1, 8, 4, 4)
    assert feeds["point_coords"].shape == (3, 7, 2)
    assert 0 <= feeds["point_coords"].min() < feeds["point_coords"].max() <= 64
    assert feeds["point_labels"].shape == (3, 7)
