"""A day on a GPU goes on whatever its parts do, and never calls a figure a GPU's that is none.

The parts here are stand-ins; no test of this file needs a GPU or shows what one does.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench_gpu_day
import pytest
from gpu_day import full_size, runner
from gpu_day import tasks as tasks_module
from gpu_day.parts import LIMIT, Part, all_parts
from gpu_day.report import NO_GPU, render
from gpu_day.roofline import rooflines
from gpu_day.runner import FAILED, MEASURED, NOT_RUN, TIMED_OUT, Day
from harness import host, job
from harness.rows import ROWS
from support.golden_toy import break_normalisation, build_golden_toy, rehash
from support.interrupts import attend_interrupts

from clipsam.export.parity import prepare as parity_of_prepare
from clipsam.runtime.core.errors import OutputError

if TYPE_CHECKING:
    from clipsam.research.models.presets import Preset

TASKS = """
import os, subprocess, sys, time
from pathlib import Path

def machine(*, folder, gpu=""):
    seen = {"a stand-in": gpu} if gpu else {}
    return {"seen": seen, "unseen": {"nvidia-smi": "there is none"}, "gpu": gpu, "driver": "",
            "libraries": {"torch": "1"}, "commit": "c", "date": "today", "cpu": "x", "cores": 1,
            "memory_gb": 1, "system": "s", "python": "3"}

def count(*, folder):
    path = Path(folder) / "count"
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    return {"value": len(path.read_text())}

def wrong(*, folder):
    print("said before")
    raise ValueError("two and two")

def dies(*, folder):
    os._exit(3)

def refused(*, folder):
    from clipsam.runtime.core.errors import ExportError
    raise ExportError("The graph is wrong: build it again.")

def lacks(*, folder):
    import no_such_module

def hangs(*, folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(folder, "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)

def imports(*, folder):
    import brought_along
    return {"value": brought_along.VALUE}
"""


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "our_tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))


def part(name: str, task: str = "", **fields: Any) -> Part:
    return Part(name, f"our_tasks:{task or name}", **fields)


MACHINE = part("machine", refresh=True)
WITH_GPU = part("machine", arguments={"gpu": "Stand-in 9000"}, refresh=True)


def a_day(folder: Path, *parts: Part) -> Day:
    return Day(folder, [MACHINE, *parts], lambda text: None)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_part_that_fails_says_why_and_the_rest_goes_on(tmp_path: Path) -> None:
    day = a_day(
        tmp_path, part("wrong"), part("dies"), part("refused"), part("lacks"), part("count")
    )
    assert not day.run()
    told = {name: (result["status"], result["reason"]) for name, result in day.results.items()}
    assert told["wrong"] == (FAILED, "exit code 1: ValueError: two and two")
    assert told["dies"] == (FAILED, "exit code 3: no message")
    assert told["refused"] == (FAILED, "The graph is wrong: build it again.")
    assert told["lacks"] == (NOT_RUN, "no_such_module is not installed.")
    assert told["count"] == (MEASURED, "")
    assert "said before" in day.log(part("wrong")).read_text()


def test_a_missing_library_alone_is_no_failure(tmp_path: Path) -> None:
    assert a_day(tmp_path, part("lacks")).run()


def test_a_part_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    day = a_day(tmp_path, part("hangs", limit=4), part("count"))
    assert not day.run()
    assert day.results["hangs"]["status"] == TIMED_OUT
    assert day.results["hangs"]["reason"] == "it ran past its limit of 4 s"
    assert day.results["count"]["status"] == MEASURED
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert [alive(pid) for pid in pids] == [False, False]


def test_what_needs_a_part_that_failed_is_not_run(tmp_path: Path) -> None:
    day = a_day(tmp_path, part("refused"), part("count", needs=("refused",)))
    day.run()
    assert day.results["count"]["status"] == NOT_RUN
    assert day.results["count"]["reason"] == "it needs the part 'refused', which is: failed"


def test_interrupted_it_leaves_nothing_running_and_goes_on_where_it_was(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from gpu_day.parts import Part\n"
        "from gpu_day.runner import Day\n"
        "parts = [Part(n, f'our_tasks:{n}', refresh=n == 'machine') for n in "
        "('machine', 'count', 'hangs')]\n"
        "Day(Path(sys.argv[2]), parts, print).run()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(job.BENCHMARKS), str(tmp_path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=attend_interrupts,
    )  # fmt: skip
    pids = tmp_path / "pids"
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    assert [alive(int(pid)) for pid in pids.read_text().split()] == [False, False]

    again = a_day(tmp_path, part("count"), part("hangs", "count"))
    assert "hangs" not in again.results
    assert again.run()
    assert again.results["count"]["figures"]["value"] == 1  # not a second time
    assert again.results["hangs"]["figures"]["value"] == 2


def test_a_part_whose_process_was_killed_is_tried_again(tmp_path: Path) -> None:
    assert not a_day(tmp_path, part("count", "dies")).run()
    day = a_day(tmp_path, part("count"))
    assert day.run()
    assert day.results["count"]["status"] == MEASURED


def test_a_result_file_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    a_day(tmp_path, part("count")).run()
    (tmp_path / "parts" / "count.json").write_text('{"status": "meas')
    day = a_day(tmp_path, part("count"))
    day.run()
    assert day.results["count"]["figures"]["value"] == 2


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"gpu": "another"}, False),
        ({"driver": "another"}, False),
        ({"commit": "another"}, False),
        ({"libraries": {"torch": "2"}}, False),
        ({"libraries": {}}, True),  # torch was added since
    ],
)
def test_figures_of_another_machine_are_not_kept(
    tmp_path: Path, changed: dict[str, Any], kept: bool
) -> None:
    a_day(tmp_path, part("count")).run()
    path = tmp_path / "parts" / "count.json"
    result = json.loads(path.read_text())
    result["on"].update(changed)
    path.write_text(json.dumps(result))
    day = a_day(tmp_path, part("count"))
    day.run()
    assert day.results["count"]["figures"]["value"] == (1 if kept else 2)


def test_what_the_given_minutes_cut_off_is_no_failure_and_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_LEAST", 0.5)
    day = a_day(tmp_path, part("count"), part("hangs"), part("refused"))
    assert day.run(minutes=0.1)
    assert set(day.results) <= {"machine", "count"}


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    def meanwhile() -> None:
        with pytest.raises(OutputError, match="Another run works in"):
            a_day(tmp_path, part("count")).run()

    assert a_day(tmp_path).run(changed=meanwhile)


def test_without_a_gpu_the_report_says_so_first_and_names_what_was_not_run(tmp_path: Path) -> None:
    day = a_day(tmp_path, part("count", gpu=True), part("lacks"))
    assert day.run()
    page = render(day.parts, day.results)
    assert page.index(NO_GPU) < page.index("## Parts")
    assert day.results["count"]["reason"] == "no NVIDIA GPU was seen on this machine"
    assert "1 measured, 2 not run, 0 other." in page
    assert not (tmp_path / "count").exists()


def test_with_a_gpu_that_was_seen_its_parts_run(tmp_path: Path) -> None:
    day = Day(tmp_path, [WITH_GPU, part("count", gpu=True)], lambda text: None)
    assert day.run()
    page = render(day.parts, day.results)
    assert NO_GPU not in page
    assert "GPU: Stand-in 9000." in page


def test_a_day_that_never_looked_claims_no_gpu() -> None:
    page = render([MACHINE], {})
    assert "nothing is known of a GPU" in page
    assert "not reached" in page


def test_a_refused_engine_is_diagnosed(tmp_path: Path) -> None:
    """The toy's fp16 encoder overflows; TensorRT is not here, which is said in its place."""
    pytest.importorskip("polygraphy")
    from gpu_day.tasks import diagnose

    asked = {"preset": "toy", "precision": "fp16", "folder": str(tmp_path)}
    assert diagnose(**asked) == {"not_run": "the gate refused no graph"}
    bundle = build_golden_toy(tmp_path / "bundles" / "toy", "fp16")
    break_normalisation(bundle / "sam_encoder.fp16.onnx")
    rehash(bundle)
    refused = {"graph": "sam_encoder", "precision": "fp16", "case": "noise"}
    engines = runner.file_of(tmp_path, "engines toy fp16", "json")
    engines.parent.mkdir()
    engines.write_text(json.dumps({"figures": {"refused": refused}}))
    found = diagnose(**asked)
    assert found["diagnosis"]["cpu"]["first"]["tensor"] == "square"
    result = {"status": MEASURED, "reason": "", "seconds": 1, "figures": found}
    assert "first diverging layer  square (Mul)" in render([], {"diagnose toy fp16": result})


def test_wheels_of_a_folder_serve_the_parts_and_nobody_else(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = "brought_along-1.0"
    with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as file:
        file.writestr("brought_along.py", "VALUE = 42\n")
        for entry, lines in (
            ("METADATA", ("Metadata-Version: 2.1", "Name: brought-along", "Version: 1.0")),
            ("WHEEL", ("Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any")),
        ):
            file.writestr(f"{name}.dist-info/{entry}", "\n".join(lines) + "\n")
        file.writestr(f"{name}.dist-info/RECORD", "")
    (wheels / "damaged-1.0-py3-none-any.whl").write_bytes(b"not a wheel")
    install = Part("wheels", "gpu_day.tasks:wheels", {"wheels": str(wheels)}, refresh=True)
    day = Day(tmp_path / "day", [install, part("imports")], lambda text: None)
    for _ in range(2):  # the second time nothing is installed again
        assert day.run()
        assert day.results["imports"]["figures"]["value"] == 42
        figures = day.results["wheels"]["figures"]
        assert figures["installed"] == [f"{name}-py3-none-any.whl"]
        assert list(figures["refused"]) == ["damaged-1.0-py3-none-any.whl"]
        assert "- damaged-1.0-py3-none-any.whl: " in render(day.parts, day.results)
    with pytest.raises(ModuleNotFoundError):
        __import__("brought_along")


def test_no_part_may_take_longer_than_ten_minutes_and_needs_come_first() -> None:
    parts = all_parts(("tiny", *full_size.PRESETS), "mask-free", "wheels")
    names = [one.name for one in parts]
    assert len(set(names)) == len(names)
    for number, one in enumerate(parts):
        assert 0 < one.limit <= LIMIT == 600
        assert set(one.needs) <= set(names[:number])


def test_every_gpu_row_of_the_latency_bench_belongs_to_one_part() -> None:
    rows = [row.name for row in ROWS if row.torch_device == "cuda"]
    for row in rows:
        parts = [name for name, x in tasks_module._LATENCY_ROWS.items() if fnmatch(row, x)]
        assert len(parts) == 1, row


def test_a_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    peaks = {
        "products": [
            {"precision": "fp16", "peak_tflops": 100.0},
            {"precision": "fp32", "peak_tflops": 20.0},
        ],
        "copies": {"device_gb_s": 1000.0},
    }
    line = {"row": "r", "part": "defective part", "precision": "fp16", "p50_ms": "4"}
    figures = {
        "lines": [
            {**line, "stage": "sam_encoder", "gflop": "100"},  # 1 ms of arithmetic
            {**line, "stage": "sam_decoder", "gflop": "10"},  # 2 ms of memory
            {**line, "stage": "clip_umci", "gflop": "10", "part": "good part"},
            {**line, "stage": "whole", "gflop": "110"},
        ],
        "bytes": {"fp16": {"sam_encoder": 10**8, "sam_decoder": 2 * 10**9}},
    }
    encoder, decoder = rooflines(figures, peaks)
    assert (encoder["floor_ms"], encoder["bound"], encoder["share"]) == (1.0, "arithmetic", 0.25)
    assert (decoder["floor_ms"], decoder["bound"], decoder["share"]) == (2.0, "memory", 0.5)
    assert "share" not in rooflines(figures, {})[0]  # nothing was measured


def test_latencies_come_with_the_operations_that_the_roofline_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench_latency

    def bench(arguments: list[str]) -> int:
        path = Path(arguments[-1])
        path.parent.mkdir()
        path.write_text(
            "row,status,part,precision,stage,p50_ms\n"
            "r,measured,defective part,fp32,sam_encoder,4\nr,measured,defective part,fp32,whole,9\n"
        )
        return 0

    monkeypatch.setattr(bench_latency, "main", bench)
    build_golden_toy(tmp_path / "bundles" / "tiny")
    figures = tasks_module.latency(preset="tiny", library="ort", folder=str(tmp_path))
    (row,) = rooflines(figures, {})
    assert row["graph"] == "sam_encoder"
    assert row["gflop"] > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--parts", "no such part"], "matches none of"),
        (["--wheels", "nowhere"], "nowhere is no folder"),
        (["--wheels", str(Path(__file__).parent)], "there is no wheel in"),
        (["--minutes", "0"], "--minutes must be more than 0"),
    ],
)
def test_wrong_usage_gets_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        bench_gpu_day.main(arguments)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_parts_bring_along_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gpu_day.main(["--parts", "cuda parity tiny", "--list"]) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == [
        "machine",
        "bundle tiny",
        "cuda parity tiny",
    ]


def test_an_output_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert bench_gpu_day.main(["--output", str(tmp_path / "file" / "below")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
def test_graphs_built_one_by_one_make_a_bundle_that_agrees_on_the_cpu(
    small_preset: Preset, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_day import tasks

    from clipsam.export.graphs.onnx_export import export_graph
    from clipsam.export.quantization import floating
    from clipsam.research.models.presets import PRESETS
    from clipsam.runtime.bundle import GRAPHS

    small = replace(small_preset, fusion=PRESETS["tiny"].fusion)
    monkeypatch.setitem(PRESETS, "tiny", small)

    # Of the same weights, and held against them below: only SAM's encoder is another.
    def export(module: Any, example: Any, axes: Any, outputs: Any, path: Path, opset: int) -> None:
        if path.stem == "sam_encoder":
            export_graph(module, example, axes, outputs, path, opset)
        else:
            shutil.copy(small_bundle / path.name, path)

    monkeypatch.setattr(full_size, "SEED", 1)
    monkeypatch.setattr(floating, "export_graph", export)
    asked: dict[str, Any] = {
        "preset": "tiny", "attention": "mask-free", "precisions": ("fp32",), "folder": str(tmp_path)
    }  # fmt: skip
    for name in GRAPHS:
        assert full_size.graph(graph=name, **asked)["fp32 against PyTorch"] < 1e-4
    assert full_size.bundle(**asked)["pictures"] == 2
    found = tasks.parity(preset="tiny", provider="cpu", precisions=("fp32",), folder=str(tmp_path))
    assert "failed" not in found
    assert [check["graph"] for check in found["graphs"]] == list(GRAPHS)
    assert all(check["prompts"] for check in found["whole"])
    monkeypatch.setattr(host, "SIZES", {"small": (200, 300)})
    monkeypatch.setattr(parity_of_prepare, "LARGE", ())
    prepared = tasks.prepare(preset="tiny", provider="cpu", folder=str(tmp_path))
    assert "failed" not in prepared
    assert prepared["pictures"]["sam_off"] <= 1
    # Where random weights put a mask's edge a grey level decides; scores and maps hardly move.
    assert all(mask["same_verdict"] for mask in prepared["masks"])
    assert max(mask["score"] for mask in prepared["masks"]) < 0.01
    assert max(mask["final_map"] for mask in prepared["masks"]) < 0.1
    assert [line["picture"] for line in prepared["times"]] == ["small"]
    names = "cpu parity tiny", "cpu prepare tiny"
    page = render(
        [part(name) for name in names],
        {
            name: {"status": MEASURED, "reason": "", "seconds": 1, "figures": figures}
            for name, figures in zip(names, (found, prepared), strict=True)
        },
    ).replace(" ", "")
    assert page.count("|cpuparitytiny|sam_encoder|fp32|cpu|") == 1
    assert page.count("|cpupreparetiny|1|") == 1
    assert page.count("|cpupreparetiny|small|") == 1


def test_the_step_that_was_timed_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench_training = pytest.importorskip("bench_training")
    timed = {"step_s": 0.25, "read_s": 0.01, "peak_rss_gb": 1.5}
    monkeypatch.setattr(bench_training, "measure", lambda args: timed)
    found = tasks_module.training(folder=str(tmp_path))
    result = {"status": MEASURED, "reason": "", "seconds": 1, "figures": found}
    page = render([part("training")], {"training": result}).replace(" ", "")
    for run in found["runs"]:
        assert f"|{found['device']}{run['precision']}|" in page
    assert "|0.25|0.01|1.5|" in page
