"""The line's benchmark on the toy bundle: what it writes, and that it notices what is not equal."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from support.toy_bundle import bright_square, build_toy_bundle

from clipsam.runtime import ClipSAM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench_line
from harness import line_parts


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def run(toy: Path, output: Path, *options: str) -> list[dict[str, str]]:
    fixed = ["--quick", "--threads", "1", "--image_size", "160", "200", "--shares", "0", "50"]
    arguments = ["--bundle", str(toy), *fixed, "--csv", str(output), *options]
    assert bench_line.main(arguments) == 0
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_for_everything(toy: Path, tmp_path: Path) -> None:
    rows = run(toy, tmp_path / "line.csv")
    assert Counter(row["row"] for row in rows) == {
        "equality": 2,
        "throughput": 6,
        "cold start": 1,
        "memory": 2,
    }
    assert {row["bundle"] for row in rows} == {"bundle"}
    assert all(row["cpu"] and row["versions"] and row["date"] for row in rows)
    by_row = {(row["row"], row["mode"], row["share"]): row for row in rows}
    assert by_row["equality", "line 1", ""]["status"] == "the same bits"
    for (name, mode, _), row in by_row.items():
        if name == "throughput":
            assert 0 < float(row["parts_s_min"]) <= float(row["parts_s_max"])
            assert 0 < float(row["p50_ms"]) <= float(row["p99_ms"])
            assert mode != "loop" or float(row["against_loop"]) == 1
        if name == "memory":
            assert 10 < float(row["peak_rss_mb"]) < 1000
    cold = by_row["cold start", "cold", ""]
    times = ("python_s", "imported_s", "opened_s", "first_good_s", "first_defective_s")
    seconds = [float(cold[name]) for name in times]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)


def test_engines_asleep_are_called_so(toy: Path, tmp_path: Path) -> None:
    rows = run(toy, tmp_path / "line.csv", "--asleep", "1", "2")
    assert {row["row"] for row in rows} == {"throughput"}
    assert all("simulated" in row["engines"] for row in rows)


@pytest.mark.parametrize(("share", "bad"), [(0, 0), (1, 1), (5, 5), (20, 20), (100, 100)])
def test_a_share_is_exact(tmp_path: Path, share: float, bad: int) -> None:
    kinds = [path.stem.split("-")[0] for path in line_parts.schedule(tmp_path, 100, share)]
    assert kinds.count("defective") == bad
    assert len(kinds) == 100
    if share == 20:
        assert kinds.index("defective") == 4  # spread evenly


def test_what_is_not_equal_is_noticed(toy: Path) -> None:
    with ClipSAM.open(toy, threads=1) as model:
        expected = [model.inspect(bright_square())]
    same = [replace(expected[0], score_map=expected[0].score_map.copy())]
    assert line_parts.compare(same, expected, exact=True) == 0
    same[0].score_map[3, 3] += 5e-6
    assert 0 < line_parts.compare(same, expected, exact=False) < 1e-5
    with pytest.raises(AssertionError, match="part 0: off by"):
        line_parts.compare(same, expected, exact=True)
    same[0].score_map[3, 3] += 1
    with pytest.raises(AssertionError, match="part 0: off by"):
        line_parts.compare(same, expected, exact=False)
    with pytest.raises(AssertionError, match="part 0: good, not anomalous"):
        line_parts.compare([replace(expected[0], verdict="good")], expected, exact=False)
    with pytest.raises(AssertionError, match="0 results of 1"):
        line_parts.compare([], expected, exact=True)
