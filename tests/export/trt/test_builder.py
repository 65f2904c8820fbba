"""Engines built from a bundle on the box: what is asked of TensorRT, and what is written.

TensorRT is a stand-in that keeps the rules of its builder and computes by onnxruntime
(fake_builder.py, fake_tensorrt.py): this shows our control flow, not that TensorRT builds these
graphs, how long it takes or how exact it is. The test marked `gpu` does, on a box.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.engine_toy import Fake, engines, names, no_leftovers
from support.fake_builder import (
    AttentionInputLayer,
    BuilderFlag,
    Layer,
    LayerType,
    Pool,
    Verbosity,
)
from support.toy_bundle import bright_square
from support.trt_engines import FAKE_BOX, has_tensorrt

from clipsam.export.parity.golden import GOLDEN
from clipsam.export.trt.build import build_engines
from clipsam.export.trt.builder import timing_cache_path
from clipsam.runtime import BundleError, ClipSAM, ClipSAMError, SessionError
from clipsam.runtime.backends.trt.sidecar import BuildFlags, read_sidecar
from clipsam.runtime.bundle import GRAPHS
from clipsam.runtime.core.errors import ExportError


def test_a_bundle_becomes_engines_that_give_a_verdict(bundle: Path, fake: Fake) -> None:
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
        assert {s.precision for s in model.sessions.values()} == {"fp16"}
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
    assert set(layers["Layers"]) == {"image", "text", "rough", "tokens"}


@pytest.mark.parametrize("typed", [0, 1])  # its value in TensorRT 11 and 10
def test_what_is_asked_of_the_builder(bundle: Path, fake: Fake, typed: int) -> None:
    """The stand-in's create_network refuses any other flag."""
    shop = fake[2]
    shop.typed = typed
    flags = BuildFlags(
        optimization_level=1,
        workspace=2 << 30,
    )
    build_engines(bundle, ["fp32"], flags)
    config = shop.configs[0]
    assert config.flags == set()  # TF32 cleared
    assert config.builder_optimization_level == 1
    assert config.profiling_verbosity is Verbosity.DETAILED
    assert config.pools == {Pool.WORKSPACE: 2 << 30}
    assert [len(c.profiles) for c in shop.configs] == [1, 0, 1]


def test_attention_may_be_computed_step_by_step(bundle: Path, fake: Fake) -> None:
    """Otherwise a build fails where TensorRT has no kernel for the whole of it."""
    shop = fake[2]
    shop.layers = [Layer(LayerType.ATTENTION_INPUT), Layer(LayerType.SHUFFLE)]
    build_engines(bundle, ["fp32"])
    first, second = shop.layers
    assert isinstance(first, AttentionInputLayer)
    assert first.attention.decomposable
    assert type(second) is Layer


def test_a_tensorrt_without_attention_layers(
    bundle: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake[1], "LayerType", SimpleNamespace())
    fake[2].layers = [Layer(LayerType.SHUFFLE)]
    assert len(build_engines(bundle, ["fp32"]).written) == 3


def test_tf32_is_float32_with_a_flag(bundle: Path, fake: Fake) -> None:
    """Engines of their own, of the float32 graphs; those in fp32 stay exact."""
    report = build_engines(bundle, ["tf32", "fp32"])
    assert report.written == [f"{g} {p}" for p in ("tf32", "fp32") for g in GRAPHS]
    assert [config.flags for config in fake[2].configs] == [{BuilderFlag.TF32}] * 3 + [set()] * 3
    with ClipSAM.open(bundle, "tensorrt") as model:  # it is preferred to fp32
        assert model.precisions == dict.fromkeys(GRAPHS, "tf32")
    assert len(build_engines(bundle, ["tf32"]).kept) == 3
    sidecar = read_sidecar(FAKE_BOX.folder(bundle, "tf32") / "clip_umci.json")
    assert (sidecar.precision, sidecar.flags.tf32) == ("tf32", True)


def test_times_are_kept_beside_the_engines(bundle: Path, fake: Fake) -> None:
    shop = fake[2]
    path = timing_cache_path(bundle, FAKE_BOX)
    path.parent.mkdir()
    path.write_bytes(b"of another TensorRT")
    build_engines(bundle, ["fp32"])
    assert [bool(config.cache_loaded) for config in shop.configs] == [False, True, True]
    assert path.read_bytes().endswith(b" clip_umci.onnx sam_encoder.onnx sam_decoder.onnx")
    assert path.parent == bundle / "engines"


def test_a_build_without_a_progress_bar(
    bundle: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(build_engines(bundle, ["fp32"]).written) == 3


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
    (bundle / GOLDEN).unlink()
    with pytest.raises(ClipSAMError, match=GOLDEN):
        build_engines(bundle, ["fp32"])


def test_session_errors_are_passed_on(bundle: Path, fake: Fake) -> None:
    fake[1].refuse_context = True
    with pytest.raises(SessionError, match="OutOfMemory"):
        build_engines(bundle, ["fp32"])
    assert engines(bundle) == set()
    assert fake[0].held() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not has_tensorrt(), reason="no TensorRT, or no GPU")
@pytest.mark.parametrize("precision", ["fp32"])
def test_a_real_gpu_builds_engines_that_inspect(
    tiny_bundle: Path, tmp_path: Path, precision: str
) -> None:
    """The whole way with NVIDIA's own library: build, gate, open, inspect."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    report = build_engines(folder, [precision])
    assert len(report.written) == 3
    with ClipSAM.open(folder, "tensorrt") as model:
        assert np.isfinite(model.inspect(bright_square()).score_map).all()
