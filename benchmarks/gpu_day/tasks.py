"""What the parts do, each in a process of its own. Heavy libraries are imported where they are
needed: a part must not fail for want of another's."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipsam.runtime.core.errors import ClipSAMError
from gpu_day.full_size import bundle_folder

ROOT = Path(__file__).resolve().parents[2]
_LATENCY_ROWS = {
    "torch": "torch-[es]*-cuda-*",  # eager and SDPA
    "ort": "ort-cuda-*",
    "tensorrt": "tensorrt-*",
    "compile": "torch-compile-cuda-*",  # may take minutes to compile
}


def wheels(*, wheels: str, folder: str) -> dict[str, Any]:
    """Install what lies in the folder of wheels for the parts that follow."""
    from gpu_day.wheels import install

    return install(wheels, str(Path(folder) / "site"))


def look(*, folder: str) -> dict[str, Any]:
    """Machine, libraries, and who sees a GPU."""
    from gpu_day.facts import look

    return look()


def peaks(*, folder: str) -> dict[str, Any]:
    """What shares are taken of: products of matrices and copies, as fast as PyTorch has them."""
    from harness.peaks import measure_copies, measure_peaks

    return {"products": measure_peaks("cuda", 8192), "copies": measure_copies()}


def build_bundle(
    *, preset: str, attention: str, precisions: Sequence[str], folder: str
) -> dict[str, Any]:
    """The bundle as users build it, from the repository's weights."""
    from clipsam.export.bundle.build import BuildOptions, build
    from clipsam.research.models.presets import PRESETS

    target = bundle_folder(folder, preset)
    report = build(
        BuildOptions(PRESETS[preset], target, precisions=tuple(precisions), attention=attention)
    )
    return {"weights": "of the repository", "refused": list(report.refused)}


def parity(*, preset: str, provider: str, precisions: Sequence[str], folder: str) -> dict[str, Any]:
    """Every graph and the whole on `provider`, against what the CPU provider said in float32."""
    from clipsam.export.parity.golden import read_golden
    from clipsam.export.parity.inspection import Remembering, compare_picture
    from clipsam.export.parity.tensors import compare
    from clipsam.runtime.bundle import GRAPHS
    from clipsam.runtime.pipeline import ClipSAM

    target = bundle_folder(folder, preset)
    recording = read_golden(target)
    graphs, whole, wrong = [], [], []
    for precision in precisions:
        with ClipSAM.open(target, provider, precision=precision) as model:
            sessions = {name: model.sessions[name] for name in GRAPHS}  # `prepare` has its own part
            for name, session in sessions.items():
                checks = [
                    compare(name, case.name, output, expected, found[output], session.precision)
                    for case in recording.cases_for(name, session.precision)
                    for found in (session.run(case.feeds),)
                    for output, expected in case.outputs.items()
                ]
                worst = max(checks, key=lambda check: check.max_rel)
                graphs.append({"provider": session.provider, **vars(worst)})
                wrong += [f"{name} {precision}"] * (not all(c.passed for c in checks))
            remembering = {n: Remembering(s) for n, s in sessions.items()}
            for picture in recording.pictures_for(precision):
                check = compare_picture(model.bundle, dict(remembering), picture, precision)
                whole.append(vars(check))
                wrong += [f"{check.image} {precision}"] * (not check.passed)
    found = {"graphs": graphs, "whole": whole}
    return {**found, "failed": f"out of tolerance: {', '.join(wrong)}"} if wrong else found


def prepare(*, preset: str, provider: str, folder: str) -> dict[str, Any]:
    """The graph `prepare` on `provider`: its pictures and what they change in masks, against the
    host's, and what both take."""
    from harness.host import resize_times

    from clipsam.export.parity.golden import read_golden
    from clipsam.export.parity.prepare import LARGE, SIZES, check_prepare, compare_masks, worst
    from clipsam.runtime.backends.base import open_session
    from clipsam.runtime.bundle import GRAPHS
    from clipsam.runtime.pipeline import ClipSAM

    target = bundle_folder(folder, preset)
    with ClipSAM.open(target, provider) as model:
        entry = model.bundle.manifest.prepare
        assert entry is not None
        with open_session(target / entry.file, provider) as session:
            pictures = worst(check_prepare(session, (*SIZES, *LARGE)))
            own = {name: model.sessions[name] for name in GRAPHS}
            golden = read_golden(target).pictures_for("fp32")
            masks = [vars(m) for m in compare_masks(model.bundle, own, session, golden)]
            times = resize_times(session, own["clip_umci"], own["sam_encoder"])
    found = {"provider": provider, "pictures": pictures, "masks": masks, "times": times}
    wrong = [mask["image"] for mask in masks if not mask["same_verdict"]]
    return {**found, "failed": f"another verdict: {', '.join(wrong)}"} if wrong else found


def engines(*, preset: str, precision: str, folder: str) -> dict[str, Any]:
    """TensorRT's engines of one precision, each through the gate."""
    from dataclasses import asdict

    from clipsam.export.trt.build import build_engines
    from clipsam.export.trt.gate import GateError

    target = bundle_folder(folder, preset)
    try:
        report = build_engines(target, [precision], say=lambda text: print(text, flush=True))
    except GateError as error:
        refused = {"graph": error.graph, "precision": error.precision, "case": error.case}
        return {"failed": str(error), "refused": refused}
    files = (target / "engines").rglob("*.engine")
    sizes = {path.relative_to(target).as_posix(): path.stat().st_size for path in files}
    return {**asdict(report), "bytes": sizes}


def diagnose(*, preset: str, precision: str, folder: str) -> dict[str, Any]:
    """Which layer the gate's refusal is about, where it refused an engine."""
    from gpu_day.runner import file_of

    engines = file_of(Path(folder), f"engines {preset} {precision}", "json")
    said = json.loads(engines.read_text()) if engines.exists() else {}
    asked = said.get("figures", {}).get("refused")
    if not isinstance(asked, dict) or asked["case"] is None:
        return {"not_run": "the gate refused no graph"}
    from dataclasses import asdict

    from clipsam.export.trt import diagnose

    target, graph, case = bundle_folder(folder, preset), asked["graph"], asked["case"]
    words = {}
    for provider in ("cpu", "tensorrt"):  # the cheap one first
        try:
            found = diagnose.diagnose(target, graph, asked["precision"], provider, case)[1]
            said_of = diagnose.describe(found, graph, asked["precision"], case, provider)
            words[provider] = {"said": said_of, **asdict(found)}
        except ClipSAMError as error:
            words[provider] = {"said": str(error)}
    return {"diagnosis": words}


def latency(*, preset: str, library: str, folder: str, rows: str = "") -> dict[str, Any]:
    """`bench_latency.py` on the bundle, one round of one library's rows."""
    import bench_latency
    from harness.peaks import count_flops

    from gpu_day.roofline import BOXES, bytes_of

    target = bundle_folder(folder, preset)
    path = Path(folder) / "latency" / f"{preset}-{library}.csv"
    path.unlink(missing_ok=True)
    code = bench_latency.main(
        ["--bundle", str(target), "--rows", rows or _LATENCY_ROWS[library], "--rounds", "1",
         "--repeats", "100", "--warmup", "5", "--seconds", "15", "--csv", str(path)]
    )  # fmt: skip
    with path.open(newline="") as file:
        lines: list[dict[str, Any]] = list(csv.DictReader(file))
    flops = count_flops(preset=preset, boxes=BOXES)
    lines = [{**line, "gflop": flops.get(line.get("stage", ""), 0) / 1e9} for line in lines]
    found = {"lines": lines, "bytes": bytes_of(target)}
    if all(line["status"].startswith("not run") for line in lines):
        return {**found, "not_run": lines[0]["status"].removeprefix("not run: ")}
    return {**found, "failed": "rows failed or differ, see the log"} if code else found


def training(*, folder: str) -> dict[str, Any]:
    """Steps of UMCI's training at the paper's sizes; on a CPU a single small batch."""
    import bench_training
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = []
    for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):
        path = Path(folder) / f"training-{precision}.csv"
        size = [] if device == "cuda" else ["--batch_size", "1", "--steps", "2"]
        bench_training.main(
            ["--device", device, "--precision", precision, "--steps", "20", *size,
             "--csv", str(path)]
        )  # fmt: skip
        with path.open(newline="") as file:
            runs += list(csv.DictReader(file))
    return {"device": device, "runs": runs}


def gpu_tests(*, folder: str) -> dict[str, Any]:
    """The tests that need a GPU."""
    path = Path(folder) / "tests.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={path}"], cwd=ROOT
    )
    suite = next(ElementTree.parse(path).iter("testsuite")).attrib
    found = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
    return {**found, "failed": "tests failed, see the log"} if done.returncode else found
