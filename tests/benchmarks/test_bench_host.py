"""The host benchmark runs at a small size, writes its figures, and fails when results differ."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_host.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_host", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def opencv_threads() -> object:
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


def run(bench: ModuleType, folder: Path, *options: str) -> tuple[int, list[dict[str, str]]]:
    path = folder / "host.csv"
    code = bench.main([*options, "--rounds", "2", "--csv", str(path)])
    with path.open(newline="") as file:
        return code, list(csv.DictReader(file))


def test_one_size(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = run(bench, tmp_path, "--sweep", "size", "--max_megapixels", "0.3")
    assert code == 0
    assert len(rows) == 2 * 8  # two paths, seven stages and their total
    assert {row["equal"] for row in rows} == {"True"}
    assert all(row["ipp"] and "opencv" in row["versions"] for row in rows)
    assert {(row["boxes"], row["threads"], row["rounds"]) for row in rows} == {("16", "1", "2")}
    total = {row["path"]: float(row["wall_ms"]) for row in rows if row["stage"] == "total"}
    for path in ("plain", "fast"):
        parts = [
            float(r["wall_p90_ms"]) for r in rows if r["path"] == path and r["stage"] != "total"
        ]
        assert 0 < total[path] <= sum(parts) + 0.01
    assert "results: the same to the last bit" in capsys.readouterr().out


@pytest.mark.parametrize("boxes", [0, 1, 3])
@pytest.mark.parametrize("components", [0, 1, 40])
def test_what_the_cases_are(bench: ModuleType, boxes: int, components: int) -> None:
    """The scenes have the boxes and components they are named after, and both paths agree."""
    scene = bench.make_scene(300, 400, boxes, components, seed=4)
    outcomes = [path(scene, bench.Clock()) for path in bench.PATHS.values()]
    assert outcomes[0].same(outcomes[1])
    assert len(outcomes[0].components) == components
    assert len(scene.logits) == boxes
    mask = outcomes[0].arrays[-1]
    assert mask.any() == (components > 0)


def test_a_difference_fails(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness import host_paths

    real = host_paths.fixed_scale

    def one_bit_off(*arguments: object) -> np.ndarray:
        final = real(*arguments)
        final[0, 0] = np.nextafter(final[0, 0], np.float32(1))
        return final

    monkeypatch.setattr(host_paths, "fixed_scale", one_bit_off)
    code, rows = run(bench, tmp_path, "--sweep", "size", "--max_megapixels", "0.3")
    assert code == 1
    assert {row["equal"] for row in rows} == {"False"}
    output = capsys.readouterr()
    assert "results: DIFFERENT" in output.out
    assert "error: the fast path's results are not the plain path's." in output.err
