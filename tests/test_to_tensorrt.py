"""Engines built from a bundle on the box: what is asked of TensorRT, kept, refused and written.

TensorRT is a stand-in that keeps the rules of its builder and computes by onnxruntime
(fake_builder.py, fake_tensorrt.py): this shows our control flow, not that TensorRT builds these
graphs, how long it takes or how exact it is. The test marked `gpu` does, on a box.
"""

from __future__ import annotations

import _thread
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_builder
import numpy as np
import pytest
from fake_builder import STEPS, BuilderFlag, Level, Pool, Verbosity, Workshop, install
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRT
from recorded_toy import break_normalisation, build_recorded_toy, rehash
from test_lean_import import BLOCK
from test_trt_api import TRT
from toy_bundle import bright_square
from trt_engines import FAKE_BOX, fake_box, has_tensorrt

from clipsam.export.build_engines import main
from clipsam.export.emulation import emulate
from clipsam.export.engine_gate import GateError
from clipsam.export.engines_on_box import EngineReport, build_engines
from clipsam.export.recorded import RECORDED
from clipsam.export.to_tensorrt import timing_cache_path
from clipsam.runtime import BundleError, ClipSAM, ClipSAMError, SessionError
from clipsam.runtime.bundle import GRAPHS
from clipsam.runtime.engine_sidecar import BuildFlags, read_sidecar
from clipsam.runtime.errors import ExportError

Fake = tuple[FakeCuda, FakeTensorRT, Workshop]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_box() as (cuda, trt):
        yield cuda, trt, install(trt)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_recorded_toy(tmp_path / "bundle", "fp16", "int8")


@pytest.fixture
def broken(bundle: Path) -> Path:
    """The bundle with an fp16 encoder that overflows in its normalisation."""
    plain = bundle.parent / "sam_encoder.fp16.onnx"
    break_normalisation(plain)
    # With every rounding written out, which onnxruntime's CPU provider leaves out.
    emulate(plain, bundle / "sam_encoder.fp16.onnx")
    rehash(bundle)
    return bundle


def engines(bundle: Path) -> set[str]:
    """Every engine that was written, with its folder."""
    return {p.relative_to(bundle / "engines").as_posix() for p in bundle.rglob("*.engine")}


def names(precision: str, *graphs: str) -> set[str]:
    return {f"sm89-10.13.3.9-{precision}/{graph}.engine" for graph in graphs or GRAPHS}


def no_leftovers(bundle: Path) -> bool:
    return not [path for path in bundle.rglob("*") if path.name.startswith(".")]


# --- what is built ------------------------------------------------------------------------------


def test_from_a_bundle_to_a_verdict(bundle: Path, fake: Fake) -> None:
    cuda, _, shop = fake
    said: list[str] = []
    report = build_engines(bundle, say=said.append)
    assert engines(bundle) == names("fp16")
    assert report.written == [f"{name} fp16" for name in GRAPHS]
    assert shop.graphs == [f"{name}.fp16.onnx" for name in GRAPHS]
    assert "Building clip_umci in fp16 for Fake GPU sm89, TensorRT 10.13.3.9." in said
    assert no_leftovers(bundle)
    assert cuda.held() == {}
    part = bright_square()
    with ClipSAM.open(bundle, "cpu", 1) as exact, ClipSAM.open(bundle, "tensorrt") as model:
        assert {s.precision for s in model._sessions.values()} == {"fp16"}
        assert model.inspect(part).verdict == exact.inspect(part).verdict == "anomalous"


def test_the_sidecar_says_how_it_was_built_and_judged(bundle: Path, fake: Fake) -> None:
    build_engines(bundle, ["fp16"], BuildFlags(optimization_level=5, workspace=1 << 30))
    folder = FAKE_BOX.folder(bundle, "fp16")
    sidecar = read_sidecar(folder / "clip_umci.json")
    assert (sidecar.gpu, sidecar.compute_capability, sidecar.driver) == ("Fake GPU", (8, 9), "13.0")
    assert sidecar.flags == BuildFlags(optimization_level=5, workspace=1 << 30)
    assert sidecar.profiles["image"].max == (8, 64, 64, 3)
    assert sidecar.gate["max_rel"] < 1e-2
    assert sidecar.gate["end_to_end"]["pictures"] == 4
    decoder = read_sidecar(folder / "sam_decoder.json")
    assert [decoder.profiles["point_coords"].min, decoder.profiles["point_coords"].max] == [
        (1, 7, 2),
        (16, 7, 2),
    ]
    layers = json.loads((folder / "clip_umci.layers.json").read_text())
    assert set(layers["Layers"]) == {"image", "text", "rough"}


@pytest.mark.parametrize("typed", [0, 1])  # its value in TensorRT 11 and 10
def test_what_is_asked_of_the_builder(bundle: Path, fake: Fake, typed: int) -> None:
    """The stand-in's create_network refuses any other flag."""
    shop = fake[2]
    shop.typed = typed
    flags = BuildFlags(
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        optimization_level=1,
        workspace=2 << 30,
    )
    build_engines(bundle, ["fp32"], flags)
    config = shop.configs[0]
    assert config.flags == {BuilderFlag.VERSION_COMPATIBLE}  # and TF32 cleared
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity is Verbosity.DETAILED
    assert config.hardware_compatibility_level is Level.AMPERE_PLUS
    assert config.pools == {Pool.WORKSPACE: 2 << 30}
    assert [len(c.profiles) for c in shop.configs] == [1, 0, 1]
    assert fake[1].host_code  # such an engine runs only where that is allowed


def test_times_are_kept_beside_the_engines(bundle: Path, fake: Fake) -> None:
    shop = fake[2]
    path = timing_cache_path(bundle, FAKE_BOX)
    path.parent.mkdir()
    path.write_bytes(b"of another TensorRT")
    build_engines(bundle, ["fp32"])
    assert [bool(config.cache_loaded) for config in shop.configs] == [False, True, True]
    assert path.read_bytes().endswith(b" clip_umci.onnx sam_encoder.onnx sam_decoder.onnx")
    assert path.parent == bundle / "engines"


def test_engines_that_hold_are_kept(bundle: Path, fake: Fake) -> None:
    shop = fake[2]
    build_engines(bundle, ["fp16"])
    assert build_engines(bundle, ["fp16"]) == EngineReport(kept=[f"{n} fp16" for n in GRAPHS])
    assert len(shop.graphs) == 3
    # int8 has no decoder of its own: that of fp16 serves.
    report = build_engines(bundle, ["int8"])
    assert (report.written, report.kept) == (
        ["clip_umci int8", "sam_encoder int8"],
        ["sam_decoder fp16"],
    )
    assert engines(bundle) == names("fp16") | names("int8", "clip_umci", "sam_encoder")
    # Damaged, or built in another way: built again.
    path = FAKE_BOX.folder(bundle, "fp16") / "sam_encoder.engine"
    path.write_bytes(path.read_bytes()[:-1])
    report = build_engines(bundle, ["fp16"])
    assert (report.written, len(report.kept)) == (["sam_encoder fp16"], 2)
    report = build_engines(bundle, ["fp16"], BuildFlags(optimization_level=0))
    assert (len(report.written), report.kept) == (3, [])


# --- what is refused ----------------------------------------------------------------------------


def test_an_engine_that_is_wrong_is_not_written(broken: Path, fake: Fake) -> None:
    with pytest.raises(
        GateError, match=r"engine of sam_encoder in fp16 .*--precision fp32"
    ) as error:
        build_engines(broken, ["fp16"])
    assert error.value.graph == "sam_encoder"
    assert engines(broken) == set()  # nor its sisters, which were not judged together
    assert no_leftovers(broken)
    assert fake[0].held() == {}


def test_fallback_builds_the_safer_precision(broken: Path, fake: Fake) -> None:
    report = build_engines(broken, ["fp16"], fallback=True)
    assert report.written == ["clip_umci fp16", "sam_encoder fp32", "sam_decoder fp16"]
    assert ["sam_encoder in fp16" in text for text in report.refused] == [True]
    assert engines(broken) == names("fp16", "clip_umci", "sam_decoder") | names(
        "fp32", "sam_encoder"
    )
    with ClipSAM.open(broken, "tensorrt") as model:  # takes what is there
        assert [s.precision for s in model._sessions.values()] == ["fp16", "fp32", "fp16"]


def test_fallback_of_the_whole(bundle: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each passes alone and the three together do not: all are built in the safer precision."""
    from clipsam.export import engines_on_box

    real = engines_on_box.check_whole

    def check(opened: Any, sessions: Any, pictures: Any, precision: str) -> Any:
        if precision == "fp16":
            raise GateError("they disagree.", None, "fp16", "fp32")
        return real(opened, sessions, pictures, precision)

    monkeypatch.setattr(engines_on_box, "check_whole", check)
    with pytest.raises(GateError):
        build_engines(bundle, ["fp16"])
    assert engines(bundle) == set()
    report = build_engines(bundle, ["fp16"], fallback=True)
    assert report.refused == ["they disagree."]
    assert engines(bundle) == names("fp32")


def test_fp32_has_no_fallback(broken: Path, fake: Fake) -> None:
    (broken / "sam_encoder.onnx").write_bytes((broken / "sam_encoder.fp16.onnx").read_bytes())
    rehash(broken)
    with pytest.raises(GateError, match=r"in fp32 .* use another TensorRT version"):
        build_engines(broken, ["fp32"], fallback=True)


def test_what_the_parser_refuses_is_named(bundle: Path, fake: Fake) -> None:
    fake[2].parse_errors = [("/neck/Resize", "Resize", "antialias is\n not supported.")]
    message = (
        r"cannot read clip_umci.onnx: the node /neck/Resize \(Resize\): antialias is not "
        "supported; build the bundle again with another --opset"
    )
    with pytest.raises(ExportError, match=message):
        build_engines(bundle, ["fp32"])
    assert no_leftovers(bundle)


def test_other_failures_are_sentences(bundle: Path, fake: Fake) -> None:
    _, trt, shop = fake
    shop.refuse_build = "Could not find any implementation for node X."
    with pytest.raises(ExportError, match=r"cannot build .*implementation for node X\): close"):
        build_engines(bundle, ["fp32"])
    shop.refuse_build, trt.refuse_start = None, True
    with pytest.raises(ExportError, match=r"does not start \(CUDA initialization failure"):
        build_engines(bundle, ["fp32"])
    trt.refuse_start = False
    with pytest.raises(BundleError, match="no graph clip_umci in bf16"):
        build_engines(bundle, ["bf16"])
    monkey = pytest.MonkeyPatch()
    monkey.setattr(trt, "HardwareCompatibilityLevel", fake_builder.Pool)
    with pytest.raises(ExportError, match="has no hardware compatibility none"):
        build_engines(bundle, ["fp32"])
    monkey.undo()
    (bundle / RECORDED).unlink()
    with pytest.raises(ClipSAMError, match=RECORDED):
        build_engines(bundle, ["fp32"])


def test_a_recording_that_nobody_vouches_for_is_refused(bundle: Path, fake: Fake) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    del values["files"][RECORDED]
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"recorded.npz is not one of the bundle's files"):
        build_engines(bundle, ["fp32"])


# --- interruption -------------------------------------------------------------------------------


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also in a background job, which is born ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_ctrl_c_ends_the_build(
    bundle: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """The monitor tells the builder to stop: no exception passes through its frames."""
    shop = fake[2]
    seen: list[int] = []

    def interrupt(step: int) -> None:
        seen.append(step)
        if len(seen) == 2:
            _thread.interrupt_main()
        if len(seen) > 2:
            raise AssertionError("the build went on")

    def patient(step: int) -> None:
        interrupt(step)
        if len(seen) == 2:  # the main thread needs a moment to hear of it
            assert cancelled(shop).wait(20)

    shop.on_step = patient
    assert main(["--engines-only", str(bundle), "--precision", "fp32"]) == 130
    assert len(seen) == 2 < STEPS
    assert engines(bundle) == set()
    assert no_leftovers(bundle)
    assert timing_cache_path(bundle, FAKE_BOX).is_file()  # what was measured is not lost
    assert "interrupted" in capsys.readouterr().err


def cancelled(shop: Workshop) -> Any:
    """The event by which the monitor in use stops a build."""
    step = shop.configs[-1].progress_monitor.step_complete
    (cell,) = step.__func__.__closure__
    return cell.cell_contents.cancel


# --- the command --------------------------------------------------------------------------------


def test_the_command(bundle: Path, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engines-only", str(bundle), "--precision", "fp16", "--workspace-gb", "1.5"]
    arguments += ["--optimisation-level", "2", "--hardware-compatibility", "ampere_plus"]
    assert main([*arguments, "--fallback"]) == 0
    out = capsys.readouterr().out
    assert "Built and checked: clip_umci fp16, sam_encoder fp16, sam_decoder fp16." in out
    sidecar = read_sidecar(FAKE_BOX.folder(bundle, "fp16") / "clip_umci.json")
    assert sidecar.flags == BuildFlags(False, "ampere_plus", 2, 3 << 29)
    assert main(arguments) == 0
    assert "Kept: clip_umci fp16" in capsys.readouterr().out


def test_the_command_on_a_wrong_engine(
    broken: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--engines-only", str(broken)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: The engine of sam_encoder in fp16 does not agree")
    assert main(["--engines-only", str(broken), "--fallback"]) == 0


def test_without_tensorrt(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkey = pytest.MonkeyPatch()
    monkey.setitem(sys.modules, "tensorrt", None)
    assert main(["--engines-only", str(bundle)]) == 1
    monkey.undo()
    assert "needs TensorRT" in capsys.readouterr().err


def test_the_box_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    """Everything that --engines-only imports, in a process where more cannot be imported."""
    code = (
        "from clipsam.export import build_engines, engines_on_box, to_tensorrt\n"
        "import sys\n"
        f"assert build_engines.main(['--engines-only', {str(bundle)!r}]) == 1\n"
    )
    blocked = ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "polygraphy", "tqdm")
    program = f"BLOCKED = {blocked!r}\n{BLOCK}\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "needs TensorRT (tensorrt is blocked)" in done.stderr


def test_a_build_without_a_progress_bar(
    bundle: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(build_engines(bundle, ["fp32"]).written) == 3


# --- against NVIDIA's own -----------------------------------------------------------------------


@pytest.mark.skipif(TRT is None, reason="no TensorRT bindings; see test_trt_api.py")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fake_builder.Builder, "Builder"),
        (fake_builder.Config, "IBuilderConfig"),
        (fake_builder.Profile, "IOptimizationProfile"),
        (fake_builder.Parser, "OnnxParser"),
        (fake_builder.ParserError, "ParserError"),
        (fake_builder.TimingCache, "ITimingCache"),
        (fake_builder.BuilderFlag, "BuilderFlag"),
        (fake_builder.Verbosity, "ProfilingVerbosity"),
        (fake_builder.Level, "HardwareCompatibilityLevel"),
        (fake_builder.Format, "LayerInformationFormat"),
    ],
)
def test_the_fake_builder_has_only_real_names(ours: type, theirs: str) -> None:
    """Names, not behaviour."""
    public = {name for name in vars(ours) if not name.startswith("_")}
    assert public <= set(dir(getattr(TRT, theirs)))


@pytest.mark.skipif(TRT is None, reason="no TensorRT bindings; see test_trt_api.py")
def test_the_monitor_is_one_of_nvidias() -> None:
    from clipsam.export.build_progress import BuildProgress, make_monitor

    progress = BuildProgress("x")
    monitor = make_monitor(TRT, progress)
    assert isinstance(monitor, TRT.IProgressMonitor)
    monitor.phase_start("a", None, 2)
    assert monitor.step_complete("a", 0)
    progress.cancel.set()
    assert not monitor.step_complete("a", 1)


@pytest.mark.gpu
@pytest.mark.skipif(not has_tensorrt(), reason="no TensorRT, or no GPU")
@pytest.mark.parametrize("precision", ["fp32"])
def test_engines_on_a_gpu(random_bundle: Path, tmp_path: Path, precision: str) -> None:
    """The whole way with NVIDIA's own library: build, gate, open, inspect."""
    import shutil

    folder = tmp_path / "bundle"
    shutil.copytree(random_bundle, folder)
    report = build_engines(folder, [precision])
    assert len(report.written) == 3
    with ClipSAM.open(folder, "tensorrt") as model:
        assert np.isfinite(model.inspect(bright_square()).score_map).all()


def test_session_errors_are_passed_on(bundle: Path, fake: Fake) -> None:
    fake[1].refuse_context = True
    with pytest.raises(SessionError, match="OutOfMemory"):
        build_engines(bundle, ["fp32"])
    assert engines(bundle) == set()
    assert fake[0].held() == {}
