"""Opening a bundle on a provider, in the precision that was asked for or suits it.

TensorRT is a stand-in here that computes by onnxruntime (fake_tensorrt.py says what that shows),
and the graphs of every precision are the same toy: which file and engine is opened is what counts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCuda
from support.toy_bundle import bright_square, build_toy_bundle, plain_part
from support.trt_engines import fake_box, write_fake_engine

from clipsam.runtime import (
    BundleError,
    ClipSAM,
    ClipSAMError,
    EngineError,
    ProviderError,
    Result,
    SessionError,
)
from clipsam.runtime.backends.trt.engine_store import Box
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.cli import main
from clipsam.runtime.core.files import sha256
from clipsam.runtime.images.reader import write_png


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_box() as (cuda, _):
        yield cuda


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_toy_bundle(tmp_path / "bundle")


def add_precisions(bundle: Path, *precisions: str) -> None:
    """As a build leaves them; int8 has no decoder of its own but the one of fp16."""
    path = bundle / "manifest.json"
    values: dict[str, Any] = json.loads(path.read_text())
    for precision in precisions:
        values["variants"][precision] = variant = {}
        for name, entry in values["variants"]["fp32"].items():
            own = "fp16" if (precision, name) == ("int8", "sam_decoder") else precision
            variant[name] = {**entry, "file": f"{name}.{own}.onnx", "precision": own}
            shutil.copy(bundle / f"{name}.onnx", bundle / variant[name]["file"])
    values["files"] = {p.name: sha256(p) for p in bundle.iterdir() if p.is_file() and p != path}
    path.write_text(json.dumps(values))


def write_engines(bundle: Path, precision: str = "fp32", *names: str) -> None:
    for name in names or GRAPHS:
        suffix = "" if precision == "fp32" else f".{precision}"
        write_fake_engine(bundle / f"{name}{suffix}.onnx", precision=precision)


def opened(bundle: Path, provider: str, precision: str | None = None) -> dict[str, str]:
    """graph -> the precision it was opened in."""
    with ClipSAM.open(bundle, provider, 1, precision) as model:
        assert {s.provider for s in model.sessions.values()} == {provider}
        return {name: session.precision for name, session in model.sessions.items()}


def test_tensorrt_inspects_as_onnxruntime_does(bundle: Path, cuda: FakeCuda) -> None:
    """The same result as onnxruntime's, part after part, and everything freed in the end."""
    write_engines(bundle)
    parts = [bright_square(), plain_part(90, 80, 30), bright_square(bright=230)]
    with ClipSAM.open(bundle, "cpu", 1) as reference, ClipSAM.open(bundle, "tensorrt") as model:
        assert {session.provider for session in model.sessions.values()} == {"tensorrt"}
        for part in parts:
            expected, found = reference.inspect(part), model.inspect(part)
            assert (found.verdict, found.regions) == (expected.verdict, expected.regions)
            np.testing.assert_array_equal(found.mask, expected.mask)
            np.testing.assert_allclose(found.score_map, expected.score_map, atol=1e-6)
    assert cuda.held() == {}


def test_the_gpu_can_be_chosen(bundle: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    """Every call that works on the device is made while the chosen one is current."""
    write_engines(bundle)
    with ClipSAM.open(bundle, "tensorrt", device_id=np.int64(1)) as model:
        part = bright_square()
        result = model.inspect(part)
    assert (model.provider, model.device_id) == ("tensorrt", 1)
    assert (result.device_id, result.anomalous) == (1, True)
    assert Result.from_json(result.to_json(), result.score_map, result.mask) == result
    assert cuda.used == {1}
    write_png(tmp_path / "part.png", part)
    command = ["inspect", str(bundle), str(tmp_path / "part.png"), "--output", str(tmp_path / "o")]
    assert main([*command, "--provider", "tensorrt", "--device-id", "1"]) == 0
    assert json.loads((tmp_path / "o/results.jsonl").read_text())["device_id"] == 1
    assert cuda.used == {1}
    assert cuda.held() == {}


@pytest.mark.parametrize(
    ("provider", "device_id", "message"),
    [
        ("tensorrt", 2, r"There is no GPU 2: this machine has 2, counted from 0"),
        ("tensorrt", -1, r"device_id=-1 must be the number of a GPU, 0 for the first"),
        ("tensorrt", True, r"device_id=True must be the number of a GPU"),
        ("tensorrt", "1", r"device_id='1' must be the number of a GPU"),
        ("cpu", 0, r"device_id=0 chooses a GPU, and provider 'cpu' uses none: leave it out"),
    ],
)
def test_a_gpu_that_cannot_be_chosen_is_one_sentence(
    bundle: Path, cuda: FakeCuda, provider: str, device_id: Any, message: str
) -> None:
    with pytest.raises(ClipSAMError, match=message):
        ClipSAM.open(bundle, provider, device_id=device_id)
    assert cuda.held() == {}


def test_opening_fails_where_one_engine_is_missing(bundle: Path, cuda: FakeCuda) -> None:
    write_engines(bundle, "fp32", "clip_umci", "sam_encoder")
    message = rf"{bundle} has no TensorRT engine of sam_decoder: build it on this box with"
    with pytest.raises(EngineError, match=message):
        ClipSAM.open(bundle, "tensorrt")
    assert cuda.held() == {}  # those that were open are closed


def everywhere(precision: str) -> dict[str, str]:
    return dict.fromkeys(GRAPHS, precision)


def test_the_cpu_runs_fp32_unless_told(bundle: Path) -> None:
    add_precisions(bundle, "fp16", "bf16", "int8")
    assert opened(bundle, "cpu") == everywhere("fp32")
    assert opened(bundle, "cpu", "fp16") == everywhere("fp16")
    assert opened(bundle, "cpu", "int8") == {**everywhere("int8"), "sam_decoder": "fp16"}
    with pytest.raises(ProviderError, match="'bf16' is for provider 'tensorrt' alone"):
        opened(bundle, "cpu", "bf16")


def test_a_precision_the_bundle_does_not_have(bundle: Path) -> None:
    with pytest.raises(
        BundleError, match="no graph clip_umci in fp16, only in fp32: build it again"
    ):
        opened(bundle, "cpu", "fp16")
    with pytest.raises(BundleError, match="no graph clip_umci in fp12"):
        opened(bundle, "cpu", "fp12")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("built", [(), ("fp16", "bf16", "int8-dynamic")])
def test_int8_dynamic_is_for_the_cpu(bundle: Path, provider: str, built: tuple[str, ...]) -> None:
    """Said at once, whether the bundle has it or not, with what this backend could open instead."""
    add_precisions(bundle, *built)
    can = {"cuda": "'fp32' or 'fp16'", "tensorrt": "'fp32' or 'fp16' or 'bf16'"}[provider]
    with pytest.raises(ProviderError) as caught:
        ClipSAM.open(bundle, provider, precision="int8-dynamic")
    assert str(caught.value) == (
        f"Precision 'int8-dynamic' is for provider 'cpu' alone and cannot run on '{provider}': use "
        f"provider 'cpu', or with '{provider}' precision {can if built else repr('fp32')}."
    )
    with pytest.raises(ProviderError, match="Unknown provider 'tpu'"):
        ClipSAM.open(bundle, "tpu", precision="int8-dynamic")


@pytest.mark.parametrize("name", ["clip_umci.onnx", "sam_encoder.fp16.onnx", "parity.json"])
def test_an_altered_file_is_refused_where_it_would_be_used(bundle: Path, name: str) -> None:
    add_precisions(bundle, "fp16")
    (bundle / name).write_bytes((bundle / name).read_bytes() + b"\n")
    for precision in ("fp32", "fp16"):
        if name == "parity.json" or (".fp16" in name) == (precision == "fp16"):
            with pytest.raises(BundleError, match=rf"file {name} was truncated or altered"):
                ClipSAM.open(bundle, "cpu", 1, precision)
        else:
            assert opened(bundle, "cpu", precision) == everywhere(precision)
    with pytest.raises(BundleError, match=rf"file {name} was truncated or altered"):
        Bundle.open(bundle)


def test_weights_beside_a_graph_are_verified_with_it(bundle: Path) -> None:
    (bundle / "sam_encoder.onnx.data").write_bytes(b"weights")
    add_precisions(bundle, "fp16")
    (bundle / "sam_encoder.onnx.data").write_bytes(b"altered")
    with pytest.raises(BundleError, match=r"sam_encoder\.onnx\.data was truncated or altered"):
        ClipSAM.open(bundle, "cpu", 1)
    assert opened(bundle, "cpu", "fp16") == everywhere("fp16")


def test_a_missing_file_is_refused_whether_it_is_used_or_not(bundle: Path) -> None:
    add_precisions(bundle, "fp16")
    (bundle / "sam_encoder.fp16.onnx").unlink()
    with pytest.raises(BundleError, match=r"file sam_encoder\.fp16\.onnx cannot be read"):
        ClipSAM.open(bundle, "cpu", 1)


def test_a_bundle_is_verified_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr("clipsam.runtime.bundle.sha256", count)
    whole = Bundle.open(bundle, verify=False)
    assert hashed == ["text_features.npz"]
    ClipSAM.open(whole, "cpu", 1).close()
    ClipSAM.open(whole, "cpu", 1).close()
    assert sorted(hashed) == sorted(whole.manifest.files)


def test_an_unknown_provider_is_refused(bundle: Path) -> None:
    for precision in (None, "fp32"):
        with pytest.raises(ProviderError, match="Unknown provider 'tpu': use one of"):
            opened(bundle, "tpu", precision)


def test_cuda_runs_fp16_where_there_is_any(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which files onnxruntime is given; there is no CUDA here."""
    import onnxruntime

    asked: list[str] = []

    def refuse(path: str, *_: object, **__: object) -> None:
        asked.append(Path(path).name)
        raise RuntimeError("no CUDA here")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    for precisions in ((), ("bf16", "int8"), ("fp16",)):
        add_precisions(bundle, *precisions)
        with pytest.raises(SessionError, match="no CUDA here"):
            ClipSAM.open(bundle, "cuda")
    with pytest.raises(SessionError, match="no CUDA here"):
        ClipSAM.open(bundle, "cuda", precision="fp32")
    assert asked == ["clip_umci.onnx"] * 2 + ["clip_umci.fp16.onnx", "clip_umci.onnx"]


def test_tensorrt_runs_the_fastest_that_was_built(bundle: Path, cuda: FakeCuda) -> None:
    """fp16, then bf16, then fp32: of those that this box has engines of."""
    add_precisions(bundle, "fp16", "bf16", "int8")
    for precision in ("fp32", "bf16", "fp16"):
        write_engines(bundle, precision)
        assert opened(bundle, "tensorrt") == everywhere(precision)
    for precision in ("fp32", "bf16", "fp16"):
        assert opened(bundle, "tensorrt", precision) == everywhere(precision)
    assert cuda.held() == {}


def test_a_bundle_that_leaves_a_gpu_slow_says_so(
    bundle: Path, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    write_engines(bundle, "fp32")
    opened(bundle, "tensorrt")
    assert "tensorrt is fastest in fp16, which bundle " in caplog.text
    assert "does not have ready: build it with --precision fp16." in caplog.text
    caplog.clear()
    opened(bundle, "tensorrt", "fp32")  # as asked
    add_precisions(bundle, "fp16")
    write_engines(bundle, "fp16")
    opened(bundle, "tensorrt")
    opened(bundle, "cpu")
    assert not caplog.text


def test_engines_of_another_box_do_not_count(bundle: Path, cuda: FakeCuda) -> None:
    add_precisions(bundle, "fp16")
    for name in GRAPHS:
        other = Box("10.9.0.34", (8, 7), "Orin")
        write_fake_engine(bundle / f"{name}.fp16.onnx", other, precision="fp16")
    write_engines(bundle, "fp32")
    assert opened(bundle, "tensorrt") == everywhere("fp32")


def test_a_precision_with_every_graph_comes_first(bundle: Path, cuda: FakeCuda) -> None:
    """What was compared as a whole, rather than the fastest of each."""
    add_precisions(bundle, "fp16", "bf16")
    write_engines(bundle, "fp16", "clip_umci", "sam_decoder")
    write_engines(bundle, "bf16")
    assert opened(bundle, "tensorrt") == everywhere("bf16")


def test_a_graph_that_fell_back(bundle: Path, cuda: FakeCuda) -> None:
    """No precision has all of them: each in the fastest it has."""
    add_precisions(bundle, "fp16", "bf16")
    write_engines(bundle, "fp16", "clip_umci", "sam_decoder")
    write_engines(bundle, "bf16", "sam_encoder")
    assert opened(bundle, "tensorrt") == {**everywhere("fp16"), "sam_encoder": "bf16"}
    with pytest.raises(EngineError, match="has no fp16 engine of sam_encoder for this box"):
        opened(bundle, "tensorrt", "fp16")


def test_int8_only_when_asked_for(bundle: Path, cuda: FakeCuda) -> None:
    add_precisions(bundle, "fp16", "int8")
    write_engines(bundle, "int8", "clip_umci", "sam_encoder")
    write_engines(bundle, "fp16", "sam_decoder")
    with pytest.raises(EngineError, match=r"only sm89-10.13.3.9-int8-fake-gpu: build it"):
        opened(bundle, "tensorrt")
    assert opened(bundle, "tensorrt", "int8") == {**everywhere("int8"), "sam_decoder": "fp16"}


def test_int8_with_an_engine_of_the_decoder_filed_under_int8(bundle: Path, cuda: FakeCuda) -> None:
    add_precisions(bundle, "fp16", "int8")
    write_engines(bundle, "int8", "clip_umci", "sam_encoder")
    write_fake_engine(bundle / "sam_decoder.fp16.onnx", precision="int8")
    assert opened(bundle, "tensorrt", "int8") == everywhere("int8")


def test_no_engine_names_the_first_precision(bundle: Path, cuda: FakeCuda) -> None:
    add_precisions(bundle, "fp16")
    with pytest.raises(EngineError, match=r"no TensorRT engine of clip_umci: .* --precision fp16`"):
        opened(bundle, "tensorrt")
    with pytest.raises(EngineError, match=r"--precision fp32`"):
        opened(bundle, "tensorrt", "fp32")


def test_a_bundle_built_anew_refuses_its_old_engines(bundle: Path, cuda: FakeCuda) -> None:
    """By the manifest's hashes, of the graph and of weights that lie beside it."""
    write_engines(bundle)
    data = bundle / "sam_encoder.onnx.data"
    data.write_bytes(b"weights")
    add_precisions(bundle)  # takes the hashes anew
    with pytest.raises(EngineError, match=r"sam_encoder\.engine was built from another ONNX file"):
        opened(bundle, "tensorrt")
    write_engines(bundle)
    assert opened(bundle, "tensorrt") == everywhere("fp32")
    data.write_bytes(b"trained again")
    add_precisions(bundle)
    with pytest.raises(EngineError, match="was built from another ONNX file"):
        opened(bundle, "tensorrt")


def test_engines_are_no_part_of_the_bundle(bundle: Path) -> None:
    before = Bundle.open(bundle).id
    write_engines(bundle)
    assert Bundle.open(bundle).id == before


def test_inspect_runs_engines_and_names_missing_ones(
    bundle: Path, tmp_path: Path, cuda: FakeCuda, capsys: pytest.CaptureFixture[str]
) -> None:
    add_precisions(bundle, "fp16")
    write_engines(bundle, "fp16")
    write_png(tmp_path / "part.png", bright_square())
    command = ["inspect", str(bundle), str(tmp_path / "part.png"), "--provider", "tensorrt"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "0 good, 1 anomalous" in capsys.readouterr().out
    assert cuda.count("cudaMalloc") > 0
    assert main([*command, "--output", str(tmp_path / "no"), "--precision", "fp32"]) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert (
        "has no fp32 engine of clip_umci for this box (Fake GPU sm89, TensorRT 10.13.3.9)" in error
    )
    assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit) as left:
        main([*command, "--output", str(tmp_path / "no"), "--precision", "fp12"])
    assert left.value.code == 2


def test_what_runs_can_be_seen(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_precisions(bundle, "int8-dynamic")
    with caplog.at_level("INFO", "clipsam"), ClipSAM.open(bundle, threads=1) as model:
        assert model.provider == "cpu"
        assert model.precisions == dict.fromkeys(GRAPHS, "int8-dynamic")
        result = model.inspect(bright_square())
    assert (result.provider, result.precisions) == ("cpu", model.precisions)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"bundle {model.bundle.id} on cpu: ")
    assert Result.from_json(result.to_json(), result.score_map, result.mask) == result
