"""Bundles in several precisions: built, checked, taken over, and refused out of tolerance."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.small_graphs import NOISE

from clipsam.export import build_engines
from clipsam.export.bundle.build import BuildOptions, BuildReport, build
from clipsam.export.graphs.onnx_export import tensor_specs
from clipsam.export.parity.bundle_vs_reference import check_end_to_end, run_reference
from clipsam.export.parity.inputs import varied_images
from clipsam.export.precisions.recipes import RECIPES, TOLERANCES
from clipsam.export.quantization import floating, static_int8
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.models.reference import Reference
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.core.errors import ExportError
from clipsam.runtime.images.reader import write_png
from clipsam.runtime.pipeline import ClipSAM

pytestmark = pytest.mark.slow  # exports


def _must_not_run(*_: object) -> None:
    raise AssertionError("exported again")


@pytest.fixture(scope="module")
def precise(precise_bundle: tuple[Path, Path, BuildReport]) -> tuple[Path, BuildReport]:
    """The small bundle in every precision; and the report of that."""
    folder, _, report = precise_bundle
    return folder, report


@pytest.fixture(scope="module")
def good_parts(precise_bundle: tuple[Path, Path, BuildReport]) -> Path:
    """A folder with images of good parts."""
    return precise_bundle[1]


def test_every_precision_is_built_and_checked(precise: tuple[Path, BuildReport]) -> None:
    folder, report = precise
    bundle = Bundle.open(folder)
    assert bundle.precisions == ("fp32", "fp16", "bf16", "int8")  # int8 brought fp16 along
    assert report.unchanged == tuple(GRAPHS)  # float32 was there
    for precision in bundle.precisions:
        for name in GRAPHS:
            own = "fp16" if (name, precision) == ("sam_decoder", "int8") else precision
            entry = bundle.graph_entry(name, precision)
            assert entry.precision == own
            suffix = "" if own == "fp32" else f".{own}"
            assert bundle.graph_path(name, precision) == folder / f"{name}{suffix}.onnx"
            assert tensor_specs(folder / entry.file) == tensor_specs(folder / f"{name}.onnx")
    for name in GRAPHS:
        sizes = [bundle.graph_path(name, p).stat().st_size for p in ("fp32", "fp16")]
        assert sizes[1] < 0.75 * sizes[0]

    assert {(c.precision, c.graph) for c in report.graphs} == {
        (precision, name)
        for precision in bundle.precisions
        for name in GRAPHS
        if (precision, name) != ("int8", "sam_decoder")
    }
    assert {c.precision for c in report.end_to_end} == set(bundle.precisions)
    assert all(check.passed for check in report.graphs)
    assert all(check.passed for check in report.end_to_end)
    for check in report.end_to_end:
        assert check.prompts > 0
        # Of the masks of a 56 x 40 image one pixel is more than the tolerance.
        one_pixel = check.flipped == 1 and check.image.endswith(" 56x40")
        assert one_pixel or check.mask_iou >= TOLERANCES[check.precision].mask_iou
        assert check.same_verdict
    native = {c.precision for c in report.graphs if c.case.endswith("as onnxruntime runs it")}
    assert native == {"fp16", "int8"}

    figures = json.loads((folder / "parity.json").read_text())
    assert figures["how"] == {precision: RECIPES[precision].how for precision in bundle.precisions}
    assert "does not run bf16" in figures["how"]["bf16"]
    assert set(figures["layers"]) == {"int8"}
    assert set(figures["layers"]["int8"]) == {"clip_umci", "sam_encoder"}
    assert len(figures["layers"]["int8"]["sam_encoder"]["int8"]) == 8
    parity = bundle.manifest.parity
    assert set(parity) == set(bundle.precisions)
    assert set(parity["int8"]["graphs"]) == {"clip_umci", "sam_encoder"}
    assert parity["int8"]["end_to_end"]["images"] == 2  # the user's that were held out
    assert parity["fp16"]["end_to_end"]["images"] == 6
    assert (folder / "engines" / "sm89" / "clip_umci.engine").is_file()  # the box's work is kept
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("provider_precision", ["fp16", "int8"])
def test_fp16_and_int8_bundles_inspect_alike(
    precise: tuple[Path, BuildReport], provider_precision: str
) -> None:
    folder, _ = precise
    image = sample_from_seed(5, 200, defect_rate=1.0).image
    with (
        ClipSAM.open(folder, threads=1) as exact,
        ClipSAM.open(folder, threads=1, precision=provider_precision) as fast,
    ):
        a, b = exact.inspect(image), fast.inspect(image)
    assert np.abs(a.score_map - b.score_map).mean() < 0.02
    assert not np.array_equal(a.score_map, b.score_map)


def test_precisions_are_taken_over(
    precise: tuple[Path, BuildReport],
    small_preset: Preset,
    good_parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(precise[0], tmp_path / "bundle"))
    monkeypatch.setattr(floating, "export_graph", _must_not_run)
    monkeypatch.setattr(static_int8, "quantize", _must_not_run)
    options = BuildOptions(
        small_preset, folder, NOISE, precisions=("int8",), calibration=good_parts, threads=1
    )
    report = build(options)
    assert set(report.unchanged) == {
        *GRAPHS,
        *(f"{name}.fp16" for name in GRAPHS),
        "clip_umci.int8",
        "sam_encoder.int8",
    }
    assert Bundle.open(folder).precisions == ("fp32", "fp16", "int8")
    assert not list(folder.glob("*.bf16.onnx"))  # it was not asked for this time

    other = Path(shutil.copytree(good_parts, tmp_path / "other"))
    write_png(other / "0.png", sample_from_seed(950, 192).image)
    with pytest.raises(AssertionError, match="exported again"):  # other images, other ranges
        build(replace(options, calibration=other))
    with pytest.raises(AssertionError, match="exported again"):
        build(replace(options, attention="mask-free"))


def test_a_precision_out_of_tolerance_is_refused(
    precise: tuple[Path, BuildReport],
    small_bundle: Path,
    small_preset: Preset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    before = Bundle.open(bundle).id
    # What it would export is there: of the same weights, and as far off.
    monkeypatch.setattr(
        floating, "export_graph", lambda *given: shutil.copy(precise[0] / given[4].name, given[4])
    )
    monkeypatch.setitem(PRESETS, "tiny", small_preset)
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], max_rel=1e-5))
    arguments = ["--random-weights", "1", "--threads", "1", "--output", str(bundle)]
    assert build_engines.main([*arguments, "--precision", "fp16"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: The graph clip_umci in fp16 does not agree with PyTorch: ")
    assert "(1e-05 is allowed); no bundle was written. Leave out --precision fp16" in message
    assert "and use fp32 (or bf16 or tf32 for TensorRT" in message
    assert Bundle.open(bundle).id == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_whole_out_of_tolerance_is_refused(
    precise: tuple[Path, BuildReport], small_preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs that pass one by one, and masks that do not."""
    bundle = Bundle.open(precise[0])
    clip, umci, sam = (
        load(small_preset)[0] for load in (NOISE.load_clip, NOISE.load_umci, NOISE.load_sam)
    )
    features = ClipFeatures(clip.visual, small_preset.features_list, small_preset.clip_image_size)
    reference = Reference(
        features, umci, sam, {"object": bundle.text("object")}, bundle.manifest.prompts
    )
    expected = run_reference(reference, list(varied_images(1)))
    (check,) = check_end_to_end(bundle, expected, 1, precision="fp16")
    assert 0.98 < check.mask_iou < 1
    assert not check.same_boxes or check.final_map > 0
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], mask_iou=1.0, scores=0.0))
    with pytest.raises(
        ExportError,
        match=r"in fp16 does not agree .* a mask \(IoU 0\.99.*, at least 1.0 is needed\), a score "
        r"\(by .*\) differs; no bundle was written. Leave out --precision fp16, and use fp32",
    ):
        check_end_to_end(bundle, expected, 1, precision="fp16")
