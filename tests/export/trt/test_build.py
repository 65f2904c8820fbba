"""Which engines are kept, which the gate refuses, and what takes their place.

By the stand-ins of test_to_tensorrt.py: an "engine" computes what its graph says, right or wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine_toy import Fake, break_encoder, engines, fake_workshop, names, no_leftovers
from support.recorded_toy import build_recorded_toy, rehash
from support.trt_engines import FAKE_BOX

from clipsam.export.parity.golden import RECORDED
from clipsam.export.trt.build import EngineReport, build_engines
from clipsam.export.trt.gate import GateError
from clipsam.runtime import BundleError, ClipSAM
from clipsam.runtime.backends.trt.sidecar import BuildFlags
from clipsam.runtime.bundle import GRAPHS
from clipsam.runtime.core.errors import EngineError, ExportError

EARLIER = "An earlier build was refused, and only --retry makes another: "


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_workshop() as libraries:
        yield libraries


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_recorded_toy(tmp_path / "bundle", "fp16", "int8")


@pytest.fixture
def broken(bundle: Path) -> Path:
    """The bundle with an fp16 encoder that overflows in its normalisation."""
    break_encoder(bundle)
    return bundle


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


def test_engines_that_disagree_together_fall_back_together(
    bundle: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each passes alone and the three together do not: all are built in the safer precision."""
    from clipsam.export.trt import build as engines_on_box

    real = engines_on_box.check_whole

    def check(opened: Any, sessions: Any, pictures: Any, precision: str) -> Any:
        if precision == "fp16":
            raise GateError("they disagree.", None, "fp16", "fp32")
        return real(opened, sessions, pictures, precision)

    monkeypatch.setattr(engines_on_box, "check_whole", check)
    with pytest.raises(GateError):
        build_engines(bundle, ["fp16"])
    assert engines(bundle) == set()
    shop = fake[2]
    before = len(shop.graphs)
    report = build_engines(bundle, ["fp16"], fallback=True)
    assert report.refused == [f"{EARLIER}they disagree."]
    assert len(shop.graphs) == before + 3  # in fp32 alone
    assert engines(bundle) == names("fp32")


def test_fp32_has_no_fallback(broken: Path, fake: Fake) -> None:
    (broken / "sam_encoder.onnx").write_bytes((broken / "sam_encoder.fp16.onnx").read_bytes())
    rehash(broken)
    with pytest.raises(GateError, match=r"in fp32 .* use another TensorRT version"):
        build_engines(broken, ["fp32"], fallback=True)


def test_a_recording_that_nobody_vouches_for_is_refused(bundle: Path, fake: Fake) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    del values["files"][RECORDED]
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"recorded.npz is not one of the bundle's files"):
        build_engines(bundle, ["fp32"])


# --- what was refused before --------------------------------------------------------------------


def test_a_refusal_is_remembered(broken: Path, fake: Fake) -> None:
    """An engine that failed is not built again, nor are its sisters, which would not be written."""
    shop = fake[2]
    with pytest.raises(GateError) as first:
        build_engines(broken, ["fp16"])
    before = len(shop.graphs)
    with pytest.raises(GateError) as again:
        build_engines(broken, ["fp16"])
    assert str(again.value) == f"{EARLIER}{first.value}"
    assert (again.value.graph, again.value.safer) == ("sam_encoder", "fp32")
    assert len(shop.graphs) == before
    report = build_engines(broken, ["fp16"], fallback=True)
    assert shop.graphs[before:] == [
        "clip_umci.fp16.onnx",
        "sam_encoder.onnx",
        "sam_decoder.fp16.onnx",
    ]
    assert report.refused == [str(again.value)]
    assert engines(broken) == names("fp16", "clip_umci", "sam_decoder") | names(
        "fp32", "sam_encoder"
    )


def test_retry_builds_it_again(broken: Path, fake: Fake) -> None:
    for _ in range(2):
        with pytest.raises(GateError, match=r"^The engine of sam_encoder in fp16"):
            build_engines(broken, ["fp16"], retry=True)
    assert fake[2].graphs.count("sam_encoder.fp16.onnx") == 2


def test_a_refusal_ends_with_what_led_to_it(
    broken: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another flag, driver, recording or graph: the engine may be right, and is judged."""
    cuda, _, shop = fake

    def built() -> bool:
        before = len(shop.graphs)
        with pytest.raises(GateError):
            build_engines(broken, ["fp16"])
        return len(shop.graphs) > before

    assert [built(), built()] == [True, False]
    with pytest.raises(GateError):
        build_engines(broken, ["fp16"], BuildFlags(optimization_level=1))
    assert [built(), built()] == [True, False]  # the last one is remembered
    cuda.driver = 13_010
    assert [built(), built()] == [True, False]
    (broken / RECORDED).write_bytes((broken / RECORDED).read_bytes() + b"\0")
    rehash(broken)
    assert [built(), built()] == [True, False]
    (broken / "sam_encoder.fp16.onnx").write_bytes((broken / "sam_encoder.onnx").read_bytes())
    rehash(broken)
    assert len(build_engines(broken, ["fp16"]).written) == 3
    assert not list(broken.rglob("*.refused.json"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"why": 5}'])
def test_a_damaged_refusal_says_nothing(broken: Path, fake: Fake, text: str) -> None:
    with pytest.raises(GateError):
        build_engines(broken, ["fp16"])
    (path,) = broken.rglob("*.refused.json")
    assert path == FAKE_BOX.folder(broken, "fp16") / "sam_encoder.refused.json"
    path.write_text(text)
    with pytest.raises(GateError, match=r"^The engine of sam_encoder"):
        build_engines(broken, ["fp16"])


# --- boxes that share a bundle ------------------------------------------------------------------


def test_two_models_of_one_compute_capability(bundle: Path, fake: Fake) -> None:
    """Each keeps its own engines and times; the other's are never opened."""
    cuda = fake[0]
    build_engines(bundle, ["fp16"])
    cuda.name = "NVIDIA GeForce RTX 4090"
    assert len(build_engines(bundle, ["fp16"]).written) == 3
    other = {f"sm89-10.13.3.9-fp16-geforce-rtx-4090/{name}.engine" for name in GRAPHS}
    assert engines(bundle) == names("fp16") | other
    assert len(list((bundle / "engines").glob("*.timing-cache"))) == 2
    for gpu in ("Fake GPU", "NVIDIA GeForce RTX 4090"):
        cuda.name = gpu
        assert len(build_engines(bundle, ["fp16"]).kept) == 3
        with ClipSAM.open(bundle, "tensorrt") as model:
            assert {s.sidecar.gpu for s in model._sessions.values()} == {gpu}  # type: ignore[attr-defined]
    cuda.name = "NVIDIA L40"
    with pytest.raises(EngineError, match=r"geforce-rtx-4090 is for another GPU, .* this is NVIDI"):
        ClipSAM.open(bundle, "tensorrt", precision="fp16")


def test_engines_for_more_than_one_model_are_shared(bundle: Path, fake: Fake) -> None:
    cuda = fake[0]
    flags = BuildFlags(hardware_compatibility="same_compute_capability")
    build_engines(bundle, ["fp16"], flags)
    shared = {f"sm89-10.13.3.9-fp16/{name}.engine" for name in GRAPHS}
    assert engines(bundle) == shared
    cuda.name = "NVIDIA L40"
    assert len(build_engines(bundle, ["fp16"], flags).kept) == 3
    with ClipSAM.open(bundle, "tensorrt") as model:
        assert {s.sidecar.gpu for s in model._sessions.values()} == {"Fake GPU"}  # type: ignore[attr-defined]
    build_engines(bundle, ["fp16"])  # its own, which is faster, comes first
    with ClipSAM.open(bundle, "tensorrt") as model:
        assert {s.sidecar.gpu for s in model._sessions.values()} == {"NVIDIA L40"}  # type: ignore[attr-defined]
    assert len(build_engines(bundle, ["fp16"], flags).kept) == 3


def test_a_precision_for_cpus_alone_is_refused(bundle: Path, fake: Fake) -> None:
    with pytest.raises(ExportError, match="int8-dynamic is for provider cpu alone and has no engi"):
        build_engines(bundle, ["fp16", "int8-dynamic"])
    assert fake[2].graphs == []
