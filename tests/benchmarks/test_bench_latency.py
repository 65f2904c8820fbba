"""The latency benchmark runs, drops what it says it drops, and says why a row was not run.

No test asserts a time. The rows of a GPU are shown here only to say that there is none, where
there is none; `nvidia-smi` is a script of ours, which shows that its words are read, not that the
real one says them.
"""

from __future__ import annotations

import csv
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from clipsam.research.models.presets import PRESETS
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import bench_latency

        yield bench_latency


@pytest.fixture(scope="module")
def latency_row(bench: ModuleType) -> ModuleType:
    return sys.modules["latency_row"]


def job(latency_row: ModuleType, **changes: Any) -> Any:
    return replace(latency_row.Job("session", "cpu", "fp32", "", "tiny", threads=1), **changes)


def test_the_whole_benchmark(
    bench: ModuleType, tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latency.csv"
    arguments = [
        "--bundle", str(tiny_bundle), "--quick", "--threads", "1",
        "--image_size", "200", "300", "--boxes", "2", "--csv", str(out),
        "--rows", "ort-cpu-fp32", "ort-cpu-fp16", "torch-eager-cpu-fp32",
    ]  # fmt: skip
    assert bench.main(arguments) == 0
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    stages = ["clip_umci", "sam_encoder", "sam_decoder 1", "sam_decoder 4", "sam_decoder 16"]
    stages += ["good part", "defective part"]
    for row in ("ort-cpu-fp32", "torch-eager-cpu-fp32"):
        found = [line for line in lines if line["row"] == row]
        assert [line["stage"] for line in found] == stages
        for line in found:
            p50, p90, p99 = (float(line[f"p{p}_ms"]) for p in (50, 90, 99))
            assert 0 < p50 <= p90 <= p99
            assert line["n"] == "3"
            assert float(line["cold_start_s"]) > 0
            assert float(line["peak_rss_mb"]) > 50
            share = float(line["gflop"]) / p50 / float(line["peak_tflops"])  # GF/ms is TF/s
            assert float(line["share"]) == pytest.approx(share, rel=0.02, abs=1e-3)
    peaks = [line for line in lines if line["row"] == "matrix peak"]
    assert [line["precision"] for line in peaks] == ["fp32", "fp16", "bf16", "int8"]
    assert float(peaks[0]["peak_tflops"]) > 0
    (fp16,) = (line for line in lines if line["row"] == "ort-cpu-fp16")
    assert fp16["status"].startswith("not run: The bundle has no graph clip_umci in fp16")
    assert all(line["date"] and line["cpu"] and "numpy" in line["versions"] for line in lines)
    assert cv2.imread(str(out.with_suffix(".png"))) is not None
    assert "ort-cpu-fp16" in capfd.readouterr().out


def test_without_a_bundle(bench: ModuleType, tmp_path: Path) -> None:
    arguments = ["--preset", "paper", "--random-weights", "0", "--bundle", str(tmp_path / "none")]
    reason = bench.prepare_bundle(bench.parse(arguments))
    assert f"--preset paper --output {tmp_path / 'none'} --random-weights 0" in reason


def test_a_row_that_fails_is_not_a_row_that_is_not_there(
    bench: ModuleType, latency_row: ModuleType
) -> None:
    report = bench.run_job(job(latency_row, image_size=(-80, 80)))
    assert "negative dimensions" in report["failed"]
    (line,) = bench.lines_of(bench.ROWS[0], report, {}, None, 4)
    assert line["status"].startswith("failed: exit code 1: ValueError")
    (line,) = bench.lines_of(bench.ROWS[0], {"not_run": "torch is not installed."}, {}, None, 4)
    assert line["status"] == "not run: torch is not installed."


def test_what_is_not_installed(
    bench: ModuleType, latency_row: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "latency_torch", raising=False)
    report = latency_row.run(job(latency_row, kind="torch-eager"))
    assert report == {"not_run": "torch is not installed."}


def test_no_row_of_that_name(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--rows", "openvino"])
    assert "tensorrt-fp16" in capsys.readouterr().err


def test_no_row_that_could_never_run(bench: ModuleType) -> None:
    """Every precision of a bundle, where the backend can run it."""
    rows: dict[str, list[str]] = {"cpu": [], "cuda": [], "tensorrt": []}
    for row in bench.ROWS:
        if row.kind == "session":
            rows[row.device].append(row.name)
    assert rows == {
        "cpu": [f"ort-cpu-{p}" for p in ("fp32", "fp16", "int8", "int8-dynamic")],
        "cuda": [f"ort-cuda-{p}" for p in ("fp32", "fp16", "int8")],
        "tensorrt": [f"tensorrt-{p}" for p in ("fp32", "fp16", "bf16", "int8")],
    }


@pytest.mark.parametrize("boxes", [0, 1, 4, 16])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_planted_part(latency_row: ModuleType, boxes: int, preset: str) -> None:
    """Every preset sees as many boxes as were planted, at image size."""
    rough = latency_row.planted_map(PRESETS[preset].clip_image_size, boxes)
    prompts = find_prompts(cv2.resize(rough, (1000, 700)), PRESETS[preset].prompts)
    assert (len(prompts), prompts.dropped) == (boxes, 0)


def test_a_subject_that_finds_something_else(latency_row: ModuleType) -> None:
    class Wrong:
        def plant(self, boxes: int) -> None: ...

        def inspect(self, image: Any) -> int:
            return 1

    with pytest.raises(RuntimeError, match="the good part was given 1 prompts, not 0"):
        latency_row.measure(job(latency_row), lambda _: Wrong())


def test_warm_up_is_dropped(latency_row: ModuleType) -> None:
    calls: list[float] = []
    small = job(latency_row, rounds=5, warmup=2)
    assert len(latency_row.timed(lambda: calls.append(0), small)) == 5
    assert len(calls) == 7
    calls.clear()
    out_of_time = job(latency_row, rounds=1000, warmup=1000, max_seconds=0.0)
    assert len(latency_row.timed(lambda: calls.append(0), out_of_time)) == latency_row.FEWEST
    assert len(calls) == 1 + latency_row.FEWEST  # one is always dropped


def test_the_times_are_milliseconds(latency_row: ModuleType) -> None:
    times = latency_row.timed(lambda: time.sleep(0.002), job(latency_row, rounds=3, warmup=1))
    assert min(times) >= 2


def test_percentiles_and_shares(bench: ModuleType) -> None:
    times = {name: list(range(1, 102)) for name in ("clip_umci", "good part", "defective part")}
    report = {
        "times_ms": times,
        "cold_start_s": 1,
        "first_defective_s": 2,
        "peak_rss_bytes": 3e6,
        "gpu": {"sm_clock_mhz": 1500.0},
    }
    flops = {"clip_umci": 1e9, "sam_encoder": 5e9, "sam_decoder 1": 1e9, "sam_decoder 16": 4e9}
    clip, good, defective = bench.lines_of(bench.ROWS[0], report, flops, 1e12, 6)
    assert (clip["p50_ms"], clip["p90_ms"], clip["p99_ms"]) == (51, 91, 100)
    assert clip["share"] == pytest.approx(1e9 / 0.051 / 1e12, abs=1e-4)
    assert good["gflop"] == 1  # SAM does not run
    assert defective["gflop"] == 1 + 5 + 2
    assert clip["sm_clock_mhz"] == 1500
    without = bench.lines_of(bench.ROWS[0], report, {}, None, 6)
    assert not any("share" in line or "gflop" in line for line in without)


def test_whose_peak_it_is(bench: ModuleType) -> None:
    rows = {row.name: row for row in bench.ROWS}
    peaks: dict[str, dict[str, Any]] = {"cpu": {"fp32": 2.0, "fp16": 1.0, "int8": "not run: …"}}
    assert bench.peak_of(rows["ort-cpu-fp16"], peaks) == 2.0  # which runs in fp32 there
    assert bench.peak_of(rows["ort-cpu-int8"], peaks) == 2.0
    assert bench.peak_of(rows["tensorrt-fp32"], peaks) is None
    peaks["cuda"] = {"fp32": 1.0, "fp16": 9.0}
    assert bench.peak_of(rows["tensorrt-fp16"], peaks) == 9.0


def test_flops_against_a_count_by_hand(bench: ModuleType) -> None:
    """ViT-H's encoder: products of weights and of attention; the rest is under one percent."""
    import latency_torch

    flops = latency_torch.count_flops(PRESETS["paper"])
    tokens, padded, width, window = 64**2, 70**2, 1280, 14**2
    by_hand = 32 * 16 * tokens * width**2  # MLPs
    by_hand += 8 * (28 * padded + 4 * tokens) * width**2  # queries, keys, values, projection
    by_hand += 4 * 4 * tokens**2 * width + 28 * 4 * 25 * window**2 * width  # attention
    assert flops["sam_encoder"] == pytest.approx(by_hand, rel=0.01)
    assert flops["sam_encoder"] > by_hand
    assert sys.modules["latency_lines"].flops_of_prompts(flops, 4) == flops["sam_decoder 4"]


def test_the_pytorch_rows_are_the_bundles_models(
    bench: ModuleType, latency_row: ModuleType, tiny_bundle: Path
) -> None:
    """Eager and bf16 (not compiled here) compute the bundle's rough map; their specs are its."""
    import latency_torch
    import torch

    from clipsam.runtime import ClipSAM

    preset, size = PRESETS["tiny"], PRESETS["tiny"].clip_image_size
    image = sample_from_seed(0, size).image[None]  # with a crack
    with torch.inference_mode(), ClipSAM.open(tiny_bundle, threads=1) as model:
        eager = latency_torch.EagerSubject(job(latency_row, kind="torch-eager"))
        feeds = {"image": image, "text": eager.text.numpy()}
        expected = model.sessions["clip_umci"].run(feeds)["rough"]
        assert np.ptp(expected) > 0.5
        np.testing.assert_allclose(eager._rough(image), expected, atol=1e-4)
        graph = latency_torch.graph_modules(
            eager.features, eager.umci, eager.predictor.model, "mask"
        )
        half = latency_torch.HalfPrecision(graph["clip_umci"], "bf16", fused_attention=True)
        specs = latency_torch.graph_specs(preset)
        session = latency_torch.TorchSession(half, "cpu", *specs["clip_umci"])
        np.testing.assert_allclose(session.run(feeds)["rough"], expected, atol=0.1)
        for name, sides in specs.items():
            entry = model.bundle.graph_entry(name)
            for ours, theirs in zip(sides, (entry.inputs, entry.outputs), strict=True):
                assert [spec.name for spec in ours] == [spec.name for spec in theirs]
                assert all(a.agrees(b) for a, b in zip(ours, theirs, strict=True))


def test_peaks(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import latency_torch

    seconds = iter([0.5, 0.25, *[1.0] * 100])
    monkeypatch.setattr(latency_torch, "_seconds", lambda call, device: next(seconds))
    assert latency_torch.matrix_peaks("cpu", 32)["fp32"] == 2 * 32**3 / 0.25  # the best round


SMI = """#!/bin/sh
case "$*" in
  *name,driver_version*) echo "Fake GPU, 600.1, 1980" ;;
  *--loop-ms*) echo "1000, 1500, 2600"; echo "3000, [N/A], 2600"; echo "2000, 1700, 2600"; echo "20"
    exec sleep 60 ;;
  *) echo 400 ;;
esac
"""


def test_the_monitor(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import machine as latency_machine

    script = tmp_path / "nvidia-smi"
    script.write_text(SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    facts = latency_machine.machine(2)
    assert (facts["gpu"], facts["driver"], facts["threads"]) == ("Fake GPU", "600.1", 2)
    with latency_machine.GpuMonitor() as monitor:
        while len(monitor._samples) < 4:
            time.sleep(0.01)
    assert monitor.figures == {
        "gpu_memory_mb": 2600, "sm_clock_mhz": 1600, "memory_clock_mhz": 2600,
    }  # fmt: skip


def test_no_monitor(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import machine as latency_machine

    monkeypatch.setenv("PATH", str(tmp_path))
    with latency_machine.GpuMonitor() as monitor:
        pass
    assert monitor.figures == {}
    assert latency_machine.machine(None)["gpu"] == "none that nvidia-smi tells of"


def test_the_chart(bench: ModuleType) -> None:
    from harness import chart as latency_chart

    bars = [("a", 1.0, 1.5), ("b", 10.0, 15.0), ("c", 100.0, 150.0)]
    chart = latency_chart.draw_chart(bars, "title")
    counts = [
        int((chart == np.array(colour, np.uint8)).all(axis=2).sum())
        for colour in latency_chart._COLOURS
    ]
    # The first begins where the axis does; the third is twice as long as the second.
    assert counts[0] > 1.9 * counts[1] > 0


def test_prompt_arrays(latency_row: ModuleType) -> None:
    coords, labels = latency_row.prompt_arrays(4, PromptOptions().num_points, 512)
    assert coords.shape == (4, 7, 2)
    assert labels[3].tolist() == [1, 1, 1, 1, 1, 2, 3]
    assert (coords[:, -2] <= coords[:, -1]).all()  # the box's corners in order


ON_THE_BOX = BENCHMARKS.parent / "docs" / "on_the_box.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the page, in that language."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```", ON_THE_BOX.read_text(), re.M | re.S
    )
    return found


def test_the_commands_of_the_page_exist(bench: ModuleType) -> None:
    """Every command of ours on it is parsed by its program; nothing is run."""
    from clipsam.export import build_engines
    from clipsam.runtime.commands import inspection

    parsers: dict[str, Any] = {
        "build_engines": build_engines._parser().parse_args,
        "clipsam inspect": inspection._parser().parse_args,
        "bench_latency": bench.parse,
    }
    counts = dict.fromkeys(parsers, 0)
    for line in "".join(blocks("console")).replace("\\\n", " ").splitlines():
        for name, parse in parsers.items():
            if name in line:
                words = shlex.split(line)
                first = next(i for i, word in enumerate(words) if name.split()[-1] in word)
                parse(words[first + 1 :])
                counts[name] += 1
    assert min(counts.values()) >= 2


def test_the_service_of_the_page(tmp_path: Path) -> None:
    """Its loop, on a model of ours; systemd is not tried."""
    from clipsam.runtime import ImageError

    class Model:
        def inspect(self, image: Any, deadline_ms: float) -> Any:
            if image.mean() > 200:
                raise ImageError("too bright")
            return self

        def to_json(self) -> str:
            return "{}"

    (service,) = (block for block in blocks("python") if "def inspect_waiting" in block)
    names: dict[str, Any] = {"__name__": "inspect_service"}
    exec(service, names)
    inbox, outbox = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    outbox.mkdir()
    for name, value in (("a", 0), ("b", 255), ("c", 100)):
        assert cv2.imwrite(str(inbox / f"{name}.png"), np.full((32, 32, 3), value, np.uint8))
    names["inspect_waiting"](Model(), inbox, outbox)
    assert sorted(path.name for path in outbox.iterdir()) == ["a.json", "c.json"]
    assert [path.name for path in inbox.iterdir()] == ["b.not-inspected"]
