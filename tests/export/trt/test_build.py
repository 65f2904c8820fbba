"""Which engines are kept, which the gate refuses, and what takes their place.

With stand-ins for TensorRT: an "engine" computes what its graph says, right or wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.engine_toy import Fake, engines, names, no_leftovers
from support.golden_toy import rehash
from support.trt_engines import FAKE_BOX

from clipsam.export.parity.golden import GOLDEN
from clipsam.export.trt.build import EngineReport, build_engines
from clipsam.export.trt.gate import GateError
from clipsam.runtime import BundleError, ClipSAM
from clipsam.runtime.backends.trt.sidecar import BuildFlags
from clipsam.runtime.bundle import GRAPHS
from clipsam.runtime.core.errors import EngineError, ExportError


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
        GateError, match=r"engine of sam_encoder in fp16 .*--precision tf32"
    ) as error:
        build_engines(broken, ["fp16"])
    assert error.value.graph == "sam_encoder"
    assert engines(broken) == set()  # nor its sisters, which were not judged together
    assert no_leftovers(broken)
    assert fake[0].held() == {}


def test_fallback_builds_the_safer_precision(broken: Path, fake: Fake) -> None:
    report = build_engines(broken, ["fp16"], fallback=True)
    assert report.written == ["clip_umci fp16", "sam_encoder tf32", "sam_decoder fp16"]
    assert ["sam_encoder in fp16" in text for text in report.refused] == [True]
    assert engines(broken) == names("fp16", "clip_umci", "sam_decoder") | names(
        "tf32", "sam_encoder"
    )
    with ClipSAM.open(broken, "tensorrt") as model:  # takes what is there
        assert [s.precision for s in model.sessions.values()] == ["fp16", "tf32", "fp16"]


def test_engines_that_disagree_together_fall_back_together(
    bundle: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each passes alone and the three together do not: all are built in the safer precision."""
    from clipsam.export.trt import build as engines_on_box
    from clipsam.export.trt.gate import check_whole as real

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
    assert report.refused == ["they disagree."]
    assert len(shop.graphs) == before + 6
    assert engines(bundle) == names("fp32")


def test_fp32_has_no_fallback(broken: Path, fake: Fake) -> None:
    (broken / "sam_encoder.onnx").write_bytes((broken / "sam_encoder.fp16.onnx").read_bytes())
    rehash(broken)
    with pytest.raises(GateError, match=r"in fp32 .* use another TensorRT version"):
        build_engines(broken, ["fp32"], fallback=True)


def test_golden_outputs_that_nobody_vouches_for_are_refused(bundle: Path, fake: Fake) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    del values["files"][GOLDEN]
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"golden.npz is not one of the bundle's files"):
        build_engines(bundle, ["fp32"])


# --- boxes that share a bundle ------------------------------------------------------------------


def test_two_models_of_one_compute_capability_share_no_engine(bundle: Path, fake: Fake) -> None:
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
            assert {s.sidecar.gpu for s in model.sessions.values()} == {gpu}  # type: ignore[attr-defined]
    cuda.name = "NVIDIA L40"
    with pytest.raises(
        EngineError, match=r"no fp16 engine of clip_umci for this box \(NVIDIA L40 sm89"
    ):
        ClipSAM.open(bundle, "tensorrt", precision="fp16")


def test_a_precision_for_cpus_alone_is_refused(bundle: Path, fake: Fake) -> None:
    with pytest.raises(ExportError, match="int8-dynamic is for provider cpu alone and has no engi"):
        build_engines(bundle, ["fp16", "int8-dynamic"])
    assert fake[2].graphs == []
