"""The line's benchmark on the toy bundle: a line of its CSV for everything it says it measures."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import bench_line
import pytest
from harness import line_parts
from support.toy_bundle import build_toy_bundle

from clipsam.runtime import ClipSAM


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


def test_throughput_cold_start_and_memory_are_measured(toy: Path, tmp_path: Path) -> None:
    output = tmp_path / "line.csv"
    options = ["--quick", "--threads", "1", "--image_size", "160", "200", "--shares", "0", "50"]
    assert bench_line.main(["--bundle", str(toy), *options, "--csv", str(output)]) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["row"] for row in rows) == {"throughput": 6, "cold start": 1, "memory": 2}
    assert {row["bundle"] for row in rows} == {"bundle"}
    assert all(row["cpu"] and row["versions"] and row["date"] for row in rows)
    for row in rows:
        if row["row"] == "throughput":
            assert 0 < float(row["parts_s_min"]) <= float(row["parts_s_max"])
            assert 0 < float(row["p50_ms"]) <= float(row["p99_ms"])
            assert row["mode"] != "loop" or float(row["against_loop"]) == 1
        if row["row"] == "memory":
            assert 10 < float(row["peak_rss_mb"]) < 1000
    (cold,) = (row for row in rows if row["row"] == "cold start")
    times = ("python_s", "imported_s", "opened_s", "first_good_s", "first_defective_s")
    seconds = [float(cold[name]) for name in times]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("share", "bad"), [(0, 0), (1, 1), (5, 5), (20, 20), (100, 100)])
def test_a_share_of_defective_parts_is_exact(tmp_path: Path, share: float, bad: int) -> None:
    kinds = [path.stem.split("-")[0] for path in line_parts.schedule(tmp_path, 100, share)]
    assert kinds.count("defective") == bad
    assert len(kinds) == 100
    if share == 20:
        assert kinds.index("defective") == 4  # spread evenly


def test_parts_that_are_given_other_boxes_end_the_run(toy: Path, tmp_path: Path) -> None:
    line_parts.write_parts(tmp_path, 160, 200)
    paths = line_parts.schedule(tmp_path, 4, 50)
    with ClipSAM.open(toy, threads=1) as model:
        planted = line_parts.plant(model, 2)
        with pytest.raises(RuntimeError, match=r"\[0, 3, 0, 3\] boxes planted were given"):
            bench_line.measure_share(planted, paths, 1, 3)
