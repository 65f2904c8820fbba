"""The engine of `prepare`: built, judged and used beside the others, or done without.

TensorRT is a stand-in that computes by onnxruntime (fake_builder.py, fake_tensorrt.py): this shows
our control flow, not that TensorRT builds the graph or how exact it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.engine_toy import Fake, engines, fake_workshop, names, no_leftovers
from support.golden_toy import build_golden_toy, rehash
from support.toy_bundle import CLIP_SIZE, SAM_SIZE, add_prepare, bright_square, plain_part
from support.trt_engines import FAKE_BOX

from clipsam.export.parity import profiles
from clipsam.export.trt import build
from clipsam.export.trt.build import build_engines
from clipsam.runtime import ClipSAM
from clipsam.runtime.backends.base import DeviceArray
from clipsam.runtime.backends.trt.sidecar import read_sidecar
from clipsam.runtime.bundle import GRAPHS
from clipsam.runtime.ops.resize_bands import widest
from clipsam.runtime.stages import prepare as stage
from clipsam.runtime.stages.rough_map import Looks

LONGEST = 240  # instead of thousands: the stand-in computes what it is shown


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    for module in (profiles, stage):
        monkeypatch.setattr(module, "LONGEST", LONGEST)
    monkeypatch.setattr(profiles, "FASTEST", LONGEST // 2)
    monkeypatch.setattr(build, "SIZES", ((130, 90), (120, 160)))
    monkeypatch.setattr(build, "LARGE", ((LONGEST, LONGEST), (1, 2)))
    with fake_workshop() as libraries:
        libraries[1].largest = {
            "height": LONGEST,
            "width": LONGEST,
            **{
                f"{graph}_{axis}_reach": widest(LONGEST, side)
                for graph, side in (("clip", CLIP_SIZE), ("sam", SAM_SIZE))
                for axis in ("columns", "rows")
            },
        }
        yield libraries


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = build_golden_toy(tmp_path / "bundle", "fp16")
    add_prepare(folder)
    return folder


def test_its_engine_is_in_float32_whatever_the_others_are_in(bundle: Path, fake: Fake) -> None:
    report = build_engines(bundle, ["fp16"])
    assert report.refused == []
    assert report.written == [*(f"{name} fp16" for name in GRAPHS), "prepare fp32"]
    assert engines(bundle) == names("fp16") | names("fp32", "prepare")
    sidecar = read_sidecar(FAKE_BOX.folder(bundle, "fp32") / "prepare.json")
    assert sidecar.gate["sam_off"] <= 1
    assert (sidecar.profiles["image"].min, sidecar.profiles["image"].max) == (
        (1, 1, 3),
        (LONGEST, LONGEST, 3),
    )
    assert build_engines(bundle, ["fp16"]).kept == [*(f"{n} fp16" for n in GRAPHS), "prepare fp32"]
    assert no_leftovers(bundle)
    assert fake[0].held() == {}


def test_pictures_go_from_it_to_the_other_engines_on_the_device(bundle: Path, fake: Fake) -> None:
    build_engines(bundle, ["fp16"])
    images = [bright_square(), plain_part(), bright_square(200, 90), bright_square()]
    with ClipSAM.open(bundle, "cpu", 1) as exact, ClipSAM.open(bundle, "tensorrt") as model:
        assert set(model.sessions) == {*GRAPHS, "prepare"}
        assert set(model.precisions) == set(GRAPHS)
        looks = Looks.of(model.sessions["clip_umci"], images[0], "off", model._preparer)
        assert isinstance(looks.inputs, DeviceArray)
        assert isinstance(looks.frame, DeviceArray)
        model.warm_up()
        for image in images:
            found, expected = model.inspect(image), exact.inspect(image)
            assert found.verdict == expected.verdict
            both = np.count_nonzero(found.mask & expected.mask)
            assert both >= 0.98 * np.count_nonzero(found.mask | expected.mask)
        verdicts = [one.result().verdict for one in model.inspect_many(images, batch=2)]
        assert verdicts == ["anomalous", "good", "anomalous", "anomalous"]
        assert model.inspect(bright_square(120, LONGEST + 1)).verdict == "anomalous"  # on the host
        del looks
    assert fake[0].held() == {}


def test_without_its_engine_pictures_are_resized_on_the_host(
    bundle: Path, fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    build_engines(bundle, ["fp16"])
    (FAKE_BOX.folder(bundle, "fp32") / "prepare.engine").unlink()
    with ClipSAM.open(bundle, "tensorrt") as model:
        assert set(model.sessions) == set(GRAPHS)
        assert model.inspect(bright_square()).verdict == "anomalous"
    assert "resized on the host" in caplog.text
    assert f"--engines-only {bundle}" in caplog.text


def test_an_engine_that_is_wrong_is_not_written_and_the_others_are(
    bundle: Path, fake: Fake
) -> None:
    path = bundle / "prepare.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "half":  # two grey levels off
            tensor.CopyFrom(numpy_helper.from_array(np.array(2.6, np.float32), "half"))
    onnx.save(model, path)
    rehash(bundle)
    said: list[str] = []
    report = build_engines(bundle, ["fp16"], say=said.append)
    assert engines(bundle) == names("fp16")
    assert "resized on the host" in report.refused[0]
    assert report.refused[0] in said
    assert no_leftovers(bundle)
    assert fake[0].held() == {}
