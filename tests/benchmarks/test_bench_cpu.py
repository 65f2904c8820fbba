"""The CPU benchmarks run, compare what they say they compare, and say why a row was not run.

No test asserts a time.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from support.toy_bundle import build_toy_bundle

from clipsam.research.models.presets import PRESETS
from clipsam.runtime.stages.prompts import find_prompts

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GOOD, DEFECTIVE = "good part", "defective part"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import bench_cpu
        import cpu_matrix  # noqa: F401

        yield bench_cpu


def module(name: str) -> ModuleType:
    """One of the benchmarks' modules, which `bench` has imported."""
    return sys.modules[name]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_bundle(tmp_path_factory.mktemp("bundles") / "toy")


def job(**changes: Any) -> Any:
    plain = module("cpu_row").CpuJob("session", "cpu", "fp32", "", "tiny", threads=1)
    return replace(plain, **{"image_size": (200, 300), **changes})


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_benchmark(
    bench: ModuleType, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flops = {"clip_umci": 1e9, "sam_encoder": 5e9, "sam_decoder 1": 1e9, "sam_decoder 16": 4e9}
    monkeypatch.setattr(bench, "count_flops", lambda job: flops)  # test_bench_latency counts them
    out = tmp_path / "cpu.csv"
    arguments = [
        "--bundle", str(tiny_bundle), "--quick", "--threads", "1", "--boxes", "2",
        "--image_size", "200", "300", "--rows", "torch-eager", "ort-*", "--csv", str(out),
    ]  # fmt: skip
    assert bench.main(arguments) == 0
    lines = read(out)
    by_stage = {(line["row"], line["part"], line["stage"]): line for line in lines}
    graphs = ("clip_umci", "sam_encoder", "sam_decoder")
    for row in ("torch-eager", "ort-stock-fp32"):
        assert (row, GOOD, "sam_encoder") not in by_stage  # no component, no SAM
        stages = {stage: by_stage[row, DEFECTIVE, stage] for stage in graphs}
        for clock in ("wall_ms", "cpu_ms"):
            total = sum(float(line[clock]) for line in stages.values())
            assert min(float(line[clock]) for line in stages.values()) > 0
            both = [by_stage[row, DEFECTIVE, s] for s in ("all graphs", "outside the graphs")]
            assert float(both[0][clock]) == pytest.approx(total, rel=1e-3)
            whole = sum(float(line[clock]) for line in both)
            assert float(by_stage[row, DEFECTIVE, "whole"][clock]) == pytest.approx(whole, rel=1e-3)
    always = by_stage["torch-eager", "good part, SAM always encodes", "whole"]
    parts = by_stage["torch-eager", GOOD, "whole"], by_stage["torch-eager", DEFECTIVE, graphs[1]]
    assert float(always["cpu_ms"]) == pytest.approx(sum(float(p["cpu_ms"]) for p in parts))
    ours = by_stage["ort-stock-fp32", DEFECTIVE, "whole"]
    eager = by_stage["torch-eager", DEFECTIVE, "whole"]
    ratio = float(eager["wall_ms"]) / float(ours["wall_ms"])
    assert float(ours["times_eager_wall"]) == pytest.approx(ratio, rel=1e-2)
    assert (ours["agrees"], ours["same_verdict"]) == ("True", "True")
    assert float(ours["mask_iou"]) > 0.999
    assert 0 < float(ours["rough_map_difference"]) < 1e-3  # CLIP really ran, in both
    assert ours["starts"] == "2"
    assert float(ours["peak_rss_mb"]) < float(eager["peak_rss_mb"])  # each its own
    assert all(line["date"] and line["cpu"] and "numpy" in line["versions"] for line in lines)
    text = out.with_suffix(".md").read_text()
    assert "| graphs of a defective part | ort-stock-fp32 | >= 1.6 times eager |" in text
    assert cv2.imread(str(out.with_suffix(".png"))) is not None


class FakeWorker:
    """Answers at once; `told` is every request that any of them got."""

    told: list[tuple[str, str]]
    rss: dict[str, float]

    def __init__(self, job: Any) -> None:
        self.name = job.precision
        self.told.append((self.name, "start"))
        if self.name == "missing":
            raise module("cpu_workers").RowError("it is not installed.", failed=False)

    def ask(self, **request: Any) -> dict[str, Any]:
        self.told.append((self.name, request["ask"]))
        if self.name == "dies" and request["ask"] == "turn":
            raise module("cpu_workers").RowError("exit code 1: MemoryError", failed=True)
        memory = {"rss_mb": self.rss[self.name], "peak_rss_mb": 2 * self.rss[self.name]}
        stages = dict.fromkeys(
            ("whole", "clip_umci", "all graphs", "outside the graphs"), (10.0, 5.0)
        )
        return {**memory, "cold_start_s": 1.0, "calls": [stages]}

    def close(self, at_once: bool = False) -> None:
        self.told.append((self.name, "end"))


@pytest.fixture
def fake(bench: ModuleType) -> type[FakeWorker]:
    FakeWorker.told, FakeWorker.rss = [], dict.fromkeys(("a", "b", "c", "dies", "missing"), 400.0)
    return FakeWorker


def team(fake: type[FakeWorker], budget: float, *names: str) -> Any:
    jobs = {name: job(precision=name) for name in names}
    return module("cpu_workers").Team(jobs, budget, fake)


def test_processes_live_while_memory_lasts(fake: type[FakeWorker]) -> None:
    with team(fake, 1700, "a", "b", "c") as rows:
        for name in "aabbcc":  # 400 MB each, 800 while they run
            assert rows.ask(name, ask="turn")
        # One whose need is not known yet runs alone.
        starts = [name for name, what in fake.told if what == "start"]
        ends = [name for name, what in fake.told if what == "end"]
        assert (starts, ends) == (["a", "b", "c"], ["a", "b"])
        fake.told.clear()
        for name in "ab":
            assert rows.ask(name, {"ask": "warm up"}, ask="turn")
        assert ("c", "end") not in fake.told  # 400 + 400 + 800 MB
        assert fake.told[:4] == [("a", "start"), ("a", "first"), ("a", "warm up"), ("a", "turn")]
        rows.peaks_mb["b"] = 1000.0
        fake.told.clear()
        assert rows.ask("b", {"ask": "warm up"}, ask="turn")
        assert fake.told == [("c", "end"), ("b", "turn")]  # the one asked longest ago
    assert {name for name, what in fake.told if what == "end"} == {"a", "b", "c"}


def test_a_row_that_cannot_go_on(fake: type[FakeWorker]) -> None:
    with team(fake, 1e6, "a", "dies", "missing") as rows:
        assert rows.ask("dies", ask="turn") is None
        assert rows.ask("missing", ask="turn") is None
        assert rows.ask("missing", ask="turn") is None
        assert rows.ask("a", ask="turn")
        assert fake.told.count(("missing", "start")) == 1
        assert fake.told.count(("dies", "end")) == 1
        assert rows.problems["missing"].status == "not run: it is not installed."
        assert rows.problems["dies"].status == "failed: exit code 1: MemoryError"


def test_rounds_go_both_ways(bench: ModuleType, fake: type[FakeWorker]) -> None:
    args = bench.parse(["--rounds", "2", "--repeats", "1", "--starts", "0"])
    rows = [module("cpu_lines").Row(name, "", job(precision=name)) for name in ("a", "b", "dies")]
    with team(fake, 1e6, "a", "b", "dies") as workers:
        run = module("cpu_run").Run(workers, rows, args)
        run._outcomes = lambda row, file: None
        run._matrix = lambda number: None
        run.measure()
    turns = [name for name, what in fake.told if what == "turn"]
    # Every part one turn, and before a process's first one that is dropped.
    assert turns == ["a", "a", "a", "b", "b", "b", "dies", "b", "b", "b", "a", "a", "a"], turns
    lines = run.lines({}, {"weights": "random 0", "image": "1024x1024"})
    (failed,) = (line for line in lines if line["row"] == "dies")
    assert failed["status"] == "failed: exit code 1: MemoryError"
    measured = [line for line in lines if line["row"] == "a"]
    assert {line["rounds"] for line in measured} == {2}


def test_a_real_process(bench: ModuleType, toy: Path, tmp_path: Path) -> None:
    """First verdict, turns, an outcome, and an end that says why."""
    workers = module("cpu_workers")
    worker = workers.Worker(job(bundle=str(toy)))
    try:
        first = worker.ask(ask="first")
        assert first["cold_start_s"] > 0
        assert 20 < first["rss_mb"] <= first["peak_rss_mb"] < 1000
        reply = worker.ask(ask="turn", regions=3, repeats=2)
        assert len(reply["calls"]) == 2
        assert set(reply["calls"][0]) >= {"whole", "sam_decoder", "outside the graphs"}
        assert "sam_encoder" not in worker.ask(ask="turn", regions=0, repeats=1)["calls"][0]
        file = tmp_path / "outcome.npz"
        worker.ask(ask="outcome", image=None, regions=3, save=str(file))
        outcome = module("cpu_row").Outcome.load(file)
        masks = list(outcome.masks())
        assert [(mask.shape, mask.dtype) for mask in masks] == [((200, 300), np.bool_)] * 9
        assert outcome.verdict == "anomalous"
        assert outcome.rough.shape == (64, 64)
        with pytest.raises(workers.RowError, match="9999 regions do not fit") as failed:
            worker.ask(ask="turn", regions=9999, repeats=1)
        assert failed.value.status.startswith("failed: exit code 1: ValueError")
    finally:
        worker.close()
    with pytest.raises(workers.RowError, match="There is no bundle in") as missing:
        workers.Worker(job(bundle=str(tmp_path / "none")))
    assert not missing.value.failed


@pytest.mark.parametrize("regions", [0, 1, 10, 16, 17, 100, 500, 1000, 2000])
@pytest.mark.parametrize("preset", ["paper", "tiny"])
def test_the_planted_regions(bench: ModuleType, regions: int, preset: str) -> None:
    size = PRESETS[preset].clip_image_size
    rough = module("cpu_row").planted_regions(size, regions)
    prompts = find_prompts(cv2.resize(rough, (1024, 1024)), PRESETS[preset].prompts)
    assert (len(prompts), len(prompts.components)) == (min(regions, 16), regions)


def test_a_part_that_was_given_something_else(bench: ModuleType) -> None:
    class Subject:
        clock = module("cpu_row").StageClock()

        def inspect(self, image: Any) -> int:
            with self.clock("clip_umci"):
                return 1

    row = module("cpu_row")
    with pytest.raises(RuntimeError, match="given 1 prompts, not 0"):
        row.turn(Subject(), None, 0, 1)
    calls = row.turn(Subject(), None, 1, 3)
    assert len(calls) == 3
    for call in calls:  # each its own
        assert call["whole"][0] >= call["all graphs"][0] == call["clip_umci"][0] > 0


def rounds() -> Any:
    """Two rounds of eager and of an engine that is 4 and 5 times as fast."""
    found: dict[tuple[str, str], Any] = {}
    for row, times in (("torch-eager", (100.0, 100.0)), ("ort", (25.0, 20.0))):
        for part, graphs in ((GOOD, ("clip_umci",)), (DEFECTIVE, ("clip_umci", "sam_encoder"))):
            for number, t in enumerate(times):
                stages = dict.fromkeys(graphs, (t, t / 2))
                whole = t * len(graphs), t * len(graphs) / 2
                stages |= {"whole": whole, "all graphs": whole, "outside the graphs": (1.0, 30.0)}
                found.setdefault((row, part), {})[number] = stages
    return found


def test_ratios_and_shares(bench: ModuleType) -> None:
    lines = module("cpu_lines")
    row = lines.Row("ort", "", job())
    flops = {"clip_umci": 1e9, "sam_encoder": 5e9, "sam_decoder 1": 0.0, "sam_decoder 16": 0.0}
    peaks = {0: (50e9, 100e9), 1: (100e9, 100e9)}
    found = {
        (line["part"], line["stage"]): line
        for line in lines.lines_of_row(row, rounds(), flops, peaks, 16)
    }
    good = found[GOOD, "whole"]
    assert (good["wall_ms"], good["wall_ms_min"], good["wall_ms_max"]) == (22.5, 20, 25)
    assert good["cpu_ms"] == 11.25
    names = ("times_eager_wall", "times_eager_wall_min", "times_eager_wall_max")
    assert [good[name] for name in names] == [4.5, 4, 5]  # round by round
    assert good["times_eager_always_sam_wall"] == 9  # 100 + 100 against 25 and 20
    assert "times_eager_always_sam_wall" not in found[DEFECTIVE, "whole"]
    assert "times_keep_pages_wall" not in good  # that row was not measured
    clip = found[GOOD, "clip_umci"]
    # 1 GFLOP in 25 and 20 ms is 40 and 50 GFLOP/s, of that round's 50 and 100.
    assert [clip[f"share_wall{end}"] for end in ("_min", "_max")] == [0.5, 0.8]
    assert found[DEFECTIVE, "whole"]["gflop"] == 6
    assert "gflop" not in found[DEFECTIVE, "outside the graphs"]
    assert not any("share_wall" in x for x in lines.lines_of_row(row, rounds(), {}, {}, 16))


def test_the_fastest_product_counts(bench: ModuleType) -> None:
    matrix, lines = module("cpu_matrix"), module("cpu_lines")
    calls = matrix.products(8, 1)
    assert list(calls) == ["NumPy", "PyTorch", "ONNX Runtime"]
    for call in calls.values():  # of matrices of ones
        (found,) = np.asarray(call()).reshape(-1, 8, 8)
        assert (found == 8).all()
    answer = matrix.answers(job(kind="matrix", matmul=16))({"repeats": 2})
    assert answer["flop"] == dict.fromkeys(answer["calls"][0], 2 * 16**3)
    times = {"a": (1.0, 0.5), "b": (2.0, 0.1)}
    found = {(lines.MATRIX, GOOD): {0: times, 3: dict.fromkeys("ab", (1.0, 1.0))}}
    flop = {"a": 1e6, "b": 1e6}
    assert lines.peak_rates(found, flop) == {0: (1e9, 1e10), 3: (1e9, 1e9)}
    a, b = lines.lines_of_products(found, flop)
    assert (a["gflop_per_wall_s"], a["gflop_per_cpu_s"], a["rounds"]) == (1, 1.5, 2)
    assert (b["backend"], b["gflop_per_wall_s_min"]) == ("b", 0.5)


def test_the_goals(bench: ModuleType) -> None:
    lines = module("cpu_lines")
    facts: dict[str, Any] = {"threads": 1, "image": "1024x1024", "boxes": 16, "preset": "paper"}

    def met(precision: str, **changes: Any) -> dict[str, bool]:
        row = lines.Row("ort", "", job(precision=precision))
        peaks = {0: (1e11, 1e11), 1: (1e11, 1e11)}
        flops = {"clip_umci": 1e9, "sam_encoder": 5e8, "sam_decoder 1": 0.0, "sam_decoder 16": 0.0}
        head = {
            "row": "ort", "engine": True, "precision": precision, "note": "", "pictures": 2,
            "peak_rss_mb": 2000, "cold_start_s": 12.0, "mask_iou": 0.99, "same_verdict": True,
            **changes,
        }  # fmt: skip
        table = [{**head, **x} for x in lines.lines_of_row(row, rounds(), flops, peaks, 16)]
        return {goal.what: goal.met for goal in module("cpu_goals").goals(table, facts)}

    assert met("fp32") == {
        "graphs of a defective part": True,
        "agreement, 2 pictures": True,
        "clip_umci": True,  # 1 GFLOP in 10 and 12.5 ms of CPU time at 100 GFLOP/s
        "sam_encoder": False,
        "outside the graphs": False,  # 30 ms of CPU time
    }
    assert met("int8-dynamic", same_verdict=False) == {
        "defective part": True,  # 4 and 5 times
        "good part": False,
        "good part, where eager encodes every part with SAM": False,
        "agreement, 2 pictures": False,
        "outside the graphs": False,
        "peak memory": True,
        "start to first verdict, wall clock": False,
    }
    facts["threads"] = 2  # then the wall clock decides
    assert met("fp32")["outside the graphs"]
    assert module("cpu_goals").note("int8-dynamic", True) == "random weights flatter int8"
    assert module("cpu_goals").note("int8", False) == module("cpu_goals").note("fp32", True) == ""


def outcome(rows: int = 5, verdict: str = "good") -> Any:
    """Two masks: the picture's first rows, and an empty one."""
    masks = np.zeros((2, 10, 10), np.bool_)
    masks[0, :rows] = True
    packed = np.packbits(masks.reshape(2, 100), axis=1)
    zeros = np.zeros((10, 10), np.float32)
    scores = np.full((1, 2), 0.5, np.float32)
    return module("cpu_row").Outcome(zeros, packed, scores, zeros, verdict)


def test_agreement(bench: ModuleType, tmp_path: Path) -> None:
    lines = module("cpu_lines")
    outcome().save(tmp_path / "a.npz")
    same = lines.agreement(outcome(), module("cpu_row").Outcome.load(tmp_path / "a.npz"))
    assert (same.mask_iou_min, same.flipped, same.rough_map) == (1, 0, 0)
    assert same.same_verdict
    other = lines.agreement(outcome(), outcome(4, "anomalous"))
    assert (other.mask_iou_min, other.mask_iou_mean, other.flipped) == (0.8, 0.9, 0.1)
    line = lines.agreement_line([same, other])
    assert (line["mask_iou"], line["mask_iou_min"], line["same_verdict"]) == (0.95, 0.8, False)


def test_a_row_that_differs_fails_the_run(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = module("cpu_lines")
    args = bench.parse(["--csv", str(tmp_path / "x.csv")])
    run = module("cpu_run").Run(None, [], args)
    for name, found in (("same", outcome()), ("other", outcome(0))):
        run.agreements[name] = [lines.agreement(outcome(), found)]
    row = lines.Row("same", "", job())
    assert run._agreement(row)["agrees"] is True
    differs = run._agreement(replace(row, name="other"))["agrees"]
    assert differs == "DIFFERS: mask IoU 0.5"
    assert run._agreement(replace(row, name="not compared")) == {}
    head = {"row": "other", "status": "measured", "agrees": differs}
    facts = {"threads": 1, "preset": "tiny", "image": "1x1", "boxes": 16, "cpu": "", "date": ""}
    assert bench.write(args, [head], facts) == 1
    assert "other DIFFERS: mask IoU 0.5" in capsys.readouterr().err


def test_where_the_bundle_comes_from(
    bench: ModuleType, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = bench.parse(
        ["--preset", "paper", "--random-weights", "3", "--attention", "stock", "mask"]
    )
    bundles, problems = module("cpu_setup").find_bundles(args)
    assert bundles == {}
    assert "--output bundles/paper-random-3 --attention stock" in problems[0]
    assert "--output bundles/paper-random-3-mask --attention mask" in problems[1]
    args = bench.parse(["--bundle", str(toy), str(toy), "--build", "int8"])
    bundles, problems = module("cpu_setup").find_bundles(args)
    assert bundles == {"stock": toy, "toy": toy}  # two of one kind
    assert "has no int8: build it again" in problems[0]
    rows = module("cpu_setup").make_rows(args, bundles, module("cpu_setup").base_job(args, bundles))
    ours = [row.name for row in rows if row.is_session]
    assert ours == ["ort-stock-fp32", "ort-toy-fp32"]


def test_the_pictures(bench: ModuleType, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"")
    args = bench.parse(["--images", str(tmp_path), "--pictures", "2"])
    assert [path.name for path in args.pictures] == ["0.png", "3.png"]
    with pytest.raises(SystemExit):
        bench.parse(["--images", str(tmp_path / "none")])
