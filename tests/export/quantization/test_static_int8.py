"""int8: ranges, which MatMuls stand it, the graph that comes out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from support.small_encoder import encoder_cases, encoder_feeds, make_encoder

from clipsam.export.build_engines import main
from clipsam.export.graphs.calibration import HELD_OUT, MAX_CALIBRATION, CalibrationImages
from clipsam.export.graphs.onnx_export import export_graph, tensor_specs
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.parity.inputs import varied_images
from clipsam.export.parity.onnx_vs_torch import check_graph, golden_cases
from clipsam.export.quantization.activations import Activations
from clipsam.export.quantization.half import HalfPrecision
from clipsam.export.quantization.static_int8 import (
    MAX_LAYER_ERROR,
    layer_error,
    quantize,
    read_record,
)
from clipsam.research.models.presets import Preset
from clipsam.runtime.core.errors import ExportError

pytestmark = pytest.mark.slow  # exports

IMAGES = list(varied_images(4))


def _export(encoder: SamEncoderGraph, folder: Path) -> Path:
    path = folder / "sam_encoder.fp16.onnx"
    *_, example = encoder_cases(IMAGES)
    export_graph(HalfPrecision(encoder, "fp16"), example.feeds, {}, ["embedding"], path)
    return path


@pytest.fixture(scope="module")
def base(small_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(make_encoder(small_preset), tmp_path_factory.mktemp("int8"))


# --- ranges -------------------------------------------------------------------------------------


def _loss(values: np.ndarray, limit: float) -> float:
    step = limit / 127
    return float(np.square(np.clip(np.round(values / step), -127, 127) * step - values).sum())


@pytest.mark.parametrize("kind", ["normal", "long tail", "one outlier", "one sided"])
def test_the_limit_is_where_least_is_lost(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(size=20000),
        "long tail": rng.standard_t(3, size=20000),
        "one outlier": np.append(rng.normal(size=20000), 20.0),
        "one sided": np.abs(rng.normal(size=20000)) * 1e-1,
    }[kind].astype(np.float32)
    seen = Activations()
    for part in np.array_split(values, 4):
        seen.add(part[:, None])
    searched = np.abs(values).max() * np.geomspace(1 / 16, 1.02, 400)
    best = min(_loss(values, float(limit)) for limit in searched)
    assert _loss(values, seen.limit()) <= 1.05 * best


def test_nothing_but_zeros_has_a_range() -> None:
    seen = Activations()
    seen.add(np.zeros((5, 4), np.float32))
    assert seen.limit() == 1.0


def test_layer_error_is_that_of_the_product() -> None:
    rng = np.random.default_rng(0)
    rows, weights = rng.normal(size=(400, 64)), rng.normal(size=(64, 32))
    weights[:, 3] *= 1000  # per channel: a large column costs the others nothing
    seen = Activations()
    seen.add(rows.astype(np.float32))
    error = layer_error(seen, weights.astype(np.float32))
    assert 0.005 < error < 0.02  # about one part in 127

    shifted, spiked = Activations(), Activations()
    shifted.add((rows + 20).astype(np.float32))  # what all tokens share is no signal
    assert layer_error(shifted, weights.astype(np.float32)) > 5 * error
    rows[:, 0] *= 300
    spiked.add(rows.astype(np.float32))
    assert layer_error(spiked, (weights / ([[300.0]] + [[1.0]] * 63)).astype(np.float32)) > 0.5


# --- the graph ----------------------------------------------------------------------------------


def test_every_layer_that_is_listed_runs_in_int8(
    base: Path, tmp_path: Path, small_preset: Preset
) -> None:
    path = tmp_path / "int8.onnx"
    result = quantize(base, path, lambda: encoder_feeds(IMAGES[:3]), threads=1)
    assert len(result.int8) == 8  # qkv, proj and two of the MLP, in both blocks
    assert not result.left_out
    assert read_record(path) == result
    assert tensor_specs(path) == tensor_specs(base)
    assert [p.name for p in base.parent.iterdir()] == [base.name]  # nothing left behind

    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "MatMul":
            continue
        kinds = [makers[name].op_type if name in makers else "" for name in node.input]
        if node.name not in result.int8:
            assert "DequantizeLinear" not in kinds
            continue
        assert kinds == ["DequantizeLinear", "DequantizeLinear"]
        activation, weights = (makers[name] for name in node.input)
        assert makers[activation.input[0]].op_type == "QuantizeLinear"
        assert numpy_helper.to_array(constants[activation.input[1]]).shape == ()
        assert constants[weights.input[0]].data_type == TensorProto.INT8
        scales = constants[weights.input[1]]
        assert list(scales.dims) == [constants[weights.input[0]].dims[1]]  # one an output channel
        assert weights.attribute[0].i == 1
        for source in (activation, weights):
            assert constants[source.input[1]].data_type == TensorProto.FLOAT16
            assert not numpy_helper.to_array(constants[source.input[2]]).any()  # symmetric

    cases = encoder_cases(IMAGES[3:])
    golden = golden_cases("sam_encoder", make_encoder(small_preset), cases)
    checks = check_graph("sam_encoder", path, golden, "int8", 1)
    assert 2e-3 < max(check.max_rel for check in checks) < 0.1  # int8, and not off by far


def test_a_layer_with_outlier_channels_is_left_out(small_preset: Preset, tmp_path: Path) -> None:
    """Random weights flatter int8; trained transformers have channels like these."""
    encoder = make_encoder(small_preset, outliers=500.0)
    cases = list(encoder_cases(IMAGES[3:]))
    golden = golden_cases("sam_encoder", encoder, cases)
    plain = golden_cases("sam_encoder", make_encoder(small_preset), cases)
    np.testing.assert_allclose(
        golden[0].outputs["embedding"], plain[0].outputs["embedding"], atol=1e-4
    )
    base = _export(encoder, tmp_path)
    result = quantize(base, tmp_path / "int8.onnx", lambda: encoder_feeds(IMAGES[:3]), threads=1)
    ((_, error),) = result.left_out.items()
    assert error > MAX_LAYER_ERROR
    assert len(result.int8) == 7
    checks = check_graph("sam_encoder", tmp_path / "int8.onnx", golden, "int8", 1)
    assert max(check.max_rel for check in checks) < 0.1


def test_a_graph_that_stands_no_int8_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipsam.export.quantization.static_int8.MAX_LAYER_ERROR", 1e-6)
    with pytest.raises(ExportError, match=r"No MatMul of sam_encoder.fp16 stands int8 .* use fp16"):
        quantize(base, tmp_path / "int8.onnx", lambda: encoder_feeds(IMAGES[:1]), threads=1)
    assert not list(tmp_path.iterdir())


# --- the user's images --------------------------------------------------------------------------


def _folder(path: Path, count: int) -> Path:
    (path / "shift").mkdir(parents=True)
    for i in range(count):
        image = np.full((16, 20, 3), i, np.uint8)
        cv2.imwrite(str(path / ("shift" if i % 2 else "") / f"{i:03}.png"), image)
    (path / "notes.txt").write_text("not an image")
    return path


@pytest.mark.parametrize(("count", "used", "held"), [(2, 1, 1), (3, 1, 2), (10, 8, 2)])
def test_images_held_out_are_not_calibrated_on(
    count: int, used: int, held: int, tmp_path: Path
) -> None:
    images = CalibrationImages.of_folder(_folder(tmp_path / "good", count))
    assert (len(images.calibration), len(images.held_out)) == (used, held)
    assert len({*images.calibration, *images.held_out}) == count
    assert [image.shape for _, image in images.read(images.held_out)] == [(16, 20, 3)] * held
    before = images.digest()
    assert CalibrationImages.of_folder(tmp_path / "good") == images
    assert images.digest() == before
    cv2.imwrite(str(images.held_out[0]), np.full((16, 20, 3), 99, np.uint8))
    assert images.digest() != before


def test_of_many_images_some_are_taken(tmp_path: Path) -> None:
    images = CalibrationImages.of_folder(_folder(tmp_path / "good", 200))
    assert len(images.calibration) == MAX_CALIBRATION
    assert len(images.held_out) == HELD_OUT
    names = sorted(path.stem for path in images.calibration)
    assert int(names[0]) < 5
    assert int(names[-1]) > 190


@pytest.mark.parametrize("count", [0, 1])
def test_one_calibration_image_is_too_few(count: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"holds (no|1) images? \(.*at least 2 images of good"):
        CalibrationImages.of_folder(_folder(tmp_path / "good", count))


def test_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "good", 4)
    (folder / "000.png").write_bytes(b"\x89PNG")
    with pytest.raises(ExportError, match=r"--calibration: .*000\.png"):
        CalibrationImages.of_folder(folder)


def test_int8_without_images_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    assert main(["--precision", "int8", "--random-weights", "0", "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error == (
        "error: --precision int8 needs --calibration FOLDER with images of good parts, from which "
        "its ranges are taken.\n"
    )
    assert not output.exists()
