"""The latency benchmark runs, drops what it says it drops, and says why a row was not run.

No test asserts a time. The rows of a GPU are shown here only to say that there is none, where
there is none; `nvidia-smi` is a script of ours, which shows that its words are read, not that the
real one says them.
"""

from __future__ import annotations

import csv
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_latency as bench
import cv2
import numpy as np
import pytest
from harness import inspection, job, machine
from harness.agreement import Outcome, agreement
from harness.clock import Clock
from harness.inspection_lines import Reports, lines_of
from harness.planted import DEFECTIVE, GOOD, planted_map
from harness.rows import ROWS, Row, select
from harness.subjects import Plan
from support.toy_bundle import build_toy_bundle

from clipsam.research.models.presets import PRESETS
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.stages.prompts import find_prompts

BY_NAME = {row.name: row for row in ROWS}
EAGER, ENGINE = "torch-eager-cpu-fp32", "ort-cpu-fp32"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")


def test_the_engine_agrees_with_eager_in_processes_of_their_own(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latency.csv"
    arguments = [
        "--bundle", str(tiny_bundle), "--quick", "--threads", "1",
        "--image_size", "200", "300", "--boxes", "2", "--csv", str(out),
        "--rows", ENGINE, "ort-cpu-fp16", EAGER,
    ]  # fmt: skip
    assert bench.main(arguments) == 0
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    graphs = ["clip_umci", "sam_encoder", "sam_decoder"]
    by = {(line["row"], line["part"], line["stage"]): line for line in lines if line["stage"]}
    for row in (EAGER, ENGINE):
        for part, own in ((GOOD, graphs[:1]), (DEFECTIVE, graphs)):  # no component, no SAM
            stages = [stage for name, of, stage in by if (name, of) == (row, part)]
            assert stages == ["whole", *own, "outside the graphs"]
            for line in (by[row, part, stage] for stage in stages):
                p50, p90, p99 = (float(line[f"p{p}_ms"]) for p in (50, 90, 99))
                assert 0 < p50 <= p90 <= p99
                assert line["n"] == "3"
                assert float(line["cold_start_s"]) > 0
    ours, eager = by[ENGINE, DEFECTIVE, "whole"], by[EAGER, DEFECTIVE, "whole"]
    ratio = float(eager["round_ms"]) / float(ours["round_ms"])
    assert float(ours["times_eager"]) == pytest.approx(ratio, rel=1e-2)
    assert (ours["agrees"], ours["same_verdict"]) == ("True", "True")
    assert float(ours["mask_iou"]) > 0.999
    assert 0 < float(ours["rough_map_difference"]) < 1e-3  # CLIP really ran, in both
    assert 50 < float(ours["peak_rss_mb"]) < float(eager["peak_rss_mb"])  # each its own
    (fp16,) = (line for line in lines if line["row"] == "ort-cpu-fp16")
    assert fp16["status"].startswith("not run: The bundle has no graph clip_umci in fp16")
    assert all(line["date"] and line["cpu"] and "numpy" in line["versions"] for line in lines)
    assert "ort-cpu-fp16" in capfd.readouterr().out


def test_a_row_that_fails_or_differs_fails_the_run(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--bundle", str(toy), "--quick", "--rows", ENGINE, "--csv", str(tmp_path / "x.csv")]
    assert bench.main([*common, "--image_size", "-80", "80"]) == 1
    assert f"{ENGINE} failed: exit code 1" in capsys.readouterr().err
    args = bench.parse(common)
    line = {"row": "a", "device": "cpu", "precision": "fp32", "status": "measured",
            "agrees": "DIFFERS: verdict"}  # fmt: skip
    assert bench.write(args, [line], {}) == 1
    assert "a DIFFERS: verdict" in capsys.readouterr().err


def test_rounds_go_both_ways_and_a_failed_row_is_not_started_again(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def run(asked: job.Job) -> dict[str, Any]:
        name = asked.arguments["row"]["name"]
        started.append(name)
        return {"failed": "x"} if name == "ort-cpu-fp16" else {"calls": {}, "cold_start_s": 1.0}

    monkeypatch.setattr(job, "run", run)
    args = bench.parse(["--bundle", str(toy), "--rounds", "2", "--rows", "ort-cpu-*"])
    args.pictures = []
    rows = [replace(BY_NAME[f"ort-cpu-{p}"], bundle=str(toy)) for p in ("fp32", "fp16", "int8")]
    found: dict[str, Reports] = {row.name: [] for row in rows}
    bench.measure(args, rows, Plan("tiny"), found)
    assert [name.split("-")[-1] for name in started] == ["fp32", "fp16", "int8", "int8", "fp32"]
    assert [len(reports) for reports in found.values()] == [2, 1, 2]


def test_a_missing_bundle_says_how_it_is_built(tmp_path: Path) -> None:
    arguments = ["--preset", "paper", "--random-weights", "0", "--bundle", str(tmp_path / "none")]
    args = bench.parse([*arguments, "--rows", ENGINE])
    (row,) = select(args.rows, args.bundle)
    reason = bench.missing_bundle(args, row)
    assert f"--preset paper --output {tmp_path / 'none'} --random-weights 0" in reason


def test_several_bundles_have_rows_of_their_own(toy: Path, tmp_path: Path) -> None:
    rows = select([ENGINE, EAGER], [toy, tmp_path / "other"])
    assert [row.name for row in rows] == [EAGER, f"{ENGINE} toy", f"{ENGINE} other"]
    assert [row.bundle for row in rows] == ["", str(toy), str(tmp_path / "other")]


def test_a_row_that_does_not_exist_is_refused_with_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--rows", "openvino"])
    assert "tensorrt-fp16" in capsys.readouterr().err


def test_no_row_is_there_that_could_never_run() -> None:
    """Every precision of a bundle, where the backend can run it."""
    rows: dict[str, list[str]] = {"cpu": [], "cuda": [], "tensorrt": []}
    for row in ROWS:
        if row.kind == "session":
            rows[row.device].append(row.name)
    assert rows == {
        "cpu": [f"ort-cpu-{p}" for p in ("fp32", "fp16", "int8", "int8-dynamic", "int8-conv")],
        "cuda": [f"ort-cuda-{p}" for p in ("fp32", "fp16", "tf32", "int8")],
        "tensorrt": [f"tensorrt-{p}" for p in ("fp32", "fp16", "bf16", "tf32", "int8")],
    }


def test_the_pictures_are_spread_over_the_folder(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"")
    args = bench.parse(["--images", str(tmp_path), "--pictures", "2"])
    assert [Path(path).name for path in args.pictures] == ["0.png", "3.png"]
    with pytest.raises(SystemExit):
        bench.parse(["--images", str(tmp_path / "none")])


@pytest.mark.parametrize("boxes", [0, 1, 4, 16])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_sees_as_many_boxes_as_were_planted(boxes: int, preset: str) -> None:
    rough = planted_map(PRESETS[preset].clip_image_size, boxes)
    resized = np.asarray(cv2.resize(rough, (1000, 700)), np.float32)
    prompts = find_prompts(resized, PRESETS[preset].prompts)
    assert (len(prompts), prompts.dropped) == (boxes, 0)


class OneBox:
    """A subject that always finds one box."""

    def __init__(self) -> None:
        self.clock, self.count = Clock(), 0

    def inspect(self, image: Any) -> int:
        self.count += 1
        with self.clock("clip_umci"):
            time.sleep(0.002)
        return 1


def test_every_inspection_has_stages_of_its_own_in_milliseconds() -> None:
    subject: Any = OneBox()
    image = np.zeros((8, 8, 3), np.uint8)
    calls = inspection.inspect(subject, image, 1, 3, 60)
    assert len(calls) == subject.count == 3
    for call in calls:
        assert call["whole"][0] >= call["clip_umci"][0] >= 2
        outside = call["whole"][0] - call["clip_umci"][0]
        assert call["outside the graphs"][0] == pytest.approx(outside)
    assert len(inspection.inspect(subject, image, 1, 1000, 0.0)) == 1  # out of time
    with pytest.raises(RuntimeError, match="given 1 prompts, not 0"):
        inspection.inspect(subject, image, 0, 1, 60)


def report(factor: float, sam: bool = True) -> dict[str, Any]:
    """Of a row whose CLIP takes 1 to 101 times `factor` milliseconds, half of it CPU time."""
    calls = [
        {"whole": (ms * factor, ms * factor / 2), "clip_umci": (ms * factor, ms * factor / 2)}
        for ms in range(1, 102)
    ]
    more = {"sam_encoder": (factor, factor)} if sam else {}
    return {
        "calls": {GOOD: calls, DEFECTIVE: [{**call, **more} for call in calls]},
        "cold_start_s": 1.0, "first_defective_s": 2.0, "peak_rss_mb": 3.0,
        "gpu": {"sm_clock_mhz": 1500.0},
    }  # fmt: skip


def test_percentiles_are_of_all_rounds_and_ratios_of_each() -> None:
    against = {"times_eager": [report(4.0), report(8.0)], "times_keep_pages": [{"failed": "x"}]}
    lines = lines_of(BY_NAME[ENGINE], [report(1.0), report(1.0)], against)
    found = {(line["part"], line["stage"]): line for line in lines}
    clip = found[GOOD, "clip_umci"]
    assert (clip["n"], clip["p50_ms"], clip["p90_ms"], clip["cpu_ms"]) == (202, 51, 91, 25.5)
    assert [clip[f"times_eager{end}"] for end in ("", "_min", "_max")] == [6, 4, 8]  # by round
    assert clip["times_eager_cpu"] == 6
    assert "times_keep_pages" not in clip  # that row was not measured
    assert clip["sm_clock_mhz"] == 1500
    (line,) = lines_of(BY_NAME[ENGINE], [], {})
    assert line["status"] == "not run: interrupted"


def outcome(rows: int = 5, verdict: str = "good") -> Outcome:
    """Two masks: the picture's first rows, and an empty one."""
    masks = np.zeros((2, 10, 10), np.bool_)
    masks[0, :rows] = True
    packed = np.packbits(masks.reshape(2, 100), axis=1)
    zeros = np.zeros((10, 10), np.float32)
    return Outcome(zeros, packed, np.full((1, 2), 0.5, np.float32), zeros, verdict)


def test_agreement_is_of_the_worst_picture(tmp_path: Path) -> None:
    outcome().save(tmp_path / "a.npz")
    same = Outcome.load(tmp_path / "a.npz")
    line = agreement([outcome(), outcome()], [same, outcome(4)], "fp32")
    assert (line["pictures"], line["mask_iou"], line["mask_iou_min"]) == (2, 0.95, 0.8)
    assert agreement([outcome()], [same], "fp32")["agrees"] is True
    assert agreement([outcome()], [outcome(0)], "fp32")["agrees"] == "DIFFERS: mask IoU 0.5000"
    other = agreement([outcome()], [outcome(verdict="anomalous")], "fp32")
    assert (other["agrees"], other["same_verdict"]) == ("DIFFERS: verdict", False)


def test_the_pytorch_rows_are_the_bundles_models(tiny_bundle: Path) -> None:
    """Eager and bf16 (not compiled here) compute the bundle's rough map; their specs are its."""
    import torch
    from harness import torch_rows

    from clipsam.runtime import ClipSAM

    preset, size = PRESETS["tiny"], PRESETS["tiny"].clip_image_size
    image = sample_from_seed(0, size).image[None]  # with a crack
    plan = Plan("tiny", text_of=str(tiny_bundle))
    with torch.inference_mode(), ClipSAM.open(tiny_bundle, threads=1) as model:
        eager = torch_rows.EagerSubject(BY_NAME[EAGER], plan)
        text = model.bundle.text(model.bundle.manifest.categories[0])[None]
        np.testing.assert_array_equal(eager.text.numpy(), text)
        feeds: dict[str, Any] = {"image": image, "text": text}
        expected = model.sessions["clip_umci"].run(feeds)["rough"]
        assert np.ptp(expected) > 0.5
        np.testing.assert_allclose(eager.rough_map(image), expected, atol=1e-4)
        bf16 = torch_rows.modules_subject(Row("", "sdpa", "cpu", "bf16"), plan)
        rough = bf16.timed["clip_umci"].run(feeds)["rough"]
        np.testing.assert_allclose(rough, expected, atol=0.1)
        assert np.abs(rough - expected).max() > 0
        for name, sides in torch_rows.graph_specs(preset).items():
            entry = model.bundle.graph_entry(name)
            for ours, theirs in zip(sides, (entry.inputs, entry.outputs), strict=True):
                assert [spec.name for spec in ours] == [spec.name for spec in theirs]
                assert all(a.agrees(b) for a, b in zip(ours, theirs, strict=True))


SMI = """#!/bin/sh
case "$*" in
  *name,driver_version*) echo "Fake GPU, 600.1, 1980" ;;
  *--loop-ms*) echo "1000, 1500, 2600"; echo "3000, [N/A], 2600"; echo "2000, 1700, 2600"; echo "20"
    touch "$0.said"; exec sleep 60 ;;
  *) echo 400 ;;
esac
"""


def test_the_monitor_reads_memory_and_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    facts = machine.machine(2)
    assert (facts["gpu"], facts["driver"], facts["threads"]) == ("Fake GPU", "600.1", 2)
    with machine.GpuMonitor() as monitor:
        while not (tmp_path / "nvidia-smi.said").exists():
            time.sleep(0.01)
    assert monitor.figures == {
        "gpu_memory_mb": 2600, "sm_clock_mhz": 1600, "memory_clock_mhz": 2600,
    }  # fmt: skip


def test_without_nvidia_smi_there_is_no_monitor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with machine.GpuMonitor() as monitor:
        pass
    assert monitor.figures == {}
    assert machine.machine(None)["gpu"] == "none that nvidia-smi tells of"


ON_THE_BOX = Path(__file__).resolve().parents[2] / "docs" / "on_the_box.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the page, in that language."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```", ON_THE_BOX.read_text(), re.M | re.S
    )
    return found


def test_the_commands_of_the_page_exist() -> None:
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
                parse(words[first:] if name == "clipsam inspect" else words[first + 1 :])
                counts[name] += 1
    assert min(counts.values()) >= 2
