"""Exporting, checking and building bundles: what comes out, and what is left when it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.small_graphs import NOISE
from torch import Tensor, nn

from clipsam.export import build_engines
from clipsam.export.bundle import whole as whole_bundle
from clipsam.export.bundle.build import BuildOptions, build
from clipsam.export.bundle.staging import check_replaceable
from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.onnx_export import OPSETS, export_graph, tensor_specs
from clipsam.export.graphs.sam_attention import ATTENTIONS
from clipsam.export.graphs.sam_decoder import SamDecoderGraph
from clipsam.export.parity.inputs import (
    clip_umci_cases,
    sam_decoder_cases,
    sam_encoder_cases,
)
from clipsam.export.parity.onnx_vs_torch import check_graph, format_table, golden_cases
from clipsam.export.parity.tensors import compare
from clipsam.export.precisions.recipes import TOLERANCES
from clipsam.export.quantization import floating
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.runtime.backends.base import TensorSpec, open_session
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.core.errors import ExportError, OutputError

pytestmark = pytest.mark.slow  # exports

REPOSITORY = Path(build_engines.__file__).resolve().parent.parent


def _content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle that the test may replace."""
    return Path(shutil.copytree(small_bundle, tmp_path / "out" / "bundle"))


# --- the bundle ---------------------------------------------------------------------------------


def test_graphs_have_the_contract_s_names_dtypes_and_shapes(tiny_bundle: Path) -> None:
    described = {
        name: [str(spec) for side in tensor_specs(tiny_bundle / f"{name}.onnx") for spec in side]
        for name in GRAPHS
    }
    assert described == {
        "clip_umci": [
            "image uint8[batch,192,192,3]",
            "text float32[batch,128,2]",
            "rough float32[batch,192,192]",
            "tokens float16[batch,2304,128]",
        ],
        "sam_encoder": [
            "image uint8[1,384,384,3]",
            "valid_size int64[2]",
            "embedding float32[1,128,24,24]",
        ],
        "sam_decoder": [
            "embedding float32[1,128,24,24]",
            "point_coords float32[prompts,points,2]",
            "point_labels float32[prompts,points]",
            "logits float32[prompts,3,96,96]",
            "scores float32[prompts,3]",
        ],
    }


def test_bundle_says_what_it_is(small_bundle: Path) -> None:
    manifest = Bundle.open(small_bundle).manifest
    assert manifest.name == "small (random weights)"
    assert set(manifest.provenance["checkpoints"].values()) == {"random:1"}
    assert set(manifest.provenance["graph_keys"]) == {*GRAPHS, "text"}
    assert manifest.prompts.points == "per_region"
    assert manifest.categories[0] == "object"
    assert manifest.provenance["attention"] == "stock"
    assert set(manifest.parity) == {"fp32"}
    assert set(manifest.parity["fp32"]["graphs"]) == set(GRAPHS)
    for figures in manifest.parity["fp32"]["graphs"].values():
        assert figures["max_rel"] <= figures["tolerance"] == TOLERANCES["fp32"].max_rel
    assert manifest.prepare is not None
    assert manifest.prepare.outputs == (
        TensorSpec("clip", "uint8", (1, 192, 192, 3)),
        TensorSpec("sam", "uint8", (1, 256, 256, 3)),
    )
    figures = json.loads((small_bundle / "parity.json").read_text())
    assert all(check["passed"] and check["off"] <= 1 for check in figures["prepare"])
    whole = figures["end_to_end"]
    assert len(whole) >= 4
    assert all(row["passed"] for row in whole)
    assert sum(row["prompts"] for row in whole) > 4
    names = {path.name for path in small_bundle.iterdir()}
    assert names == {"manifest.json", *manifest.files}  # nothing else, no external data
    for path in small_bundle.iterdir():
        assert str(REPOSITORY).encode() not in path.read_bytes()  # nor where it was built


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_gives_the_same_outputs(
    opset: int, small_graph: Callable[[str, str, int], Path], small_bundle: Path
) -> None:
    text = np.stack([Bundle.open(small_bundle).text(word) for word in ("object", "steel")])
    cases = {
        "clip_umci": clip_umci_cases(192, text),
        "sam_encoder": sam_encoder_cases(256),
        "sam_decoder": sam_decoder_cases(256, 64),
    }
    for name in GRAPHS:
        other = small_graph(name, "fp32", opset)
        model = onnx.load(other)
        assert {o.domain: o.version for o in model.opset_import}[""] == opset
        with (
            open_session(small_bundle / f"{name}.onnx", threads=1) as first,
            open_session(other, threads=1) as second,
        ):
            for case in cases[name]:
                feeds = {key: value.numpy() for key, value in case.feeds.items()}
                a, b = first.run(feeds), second.run(feeds)
                for output in a:
                    # A token may round to the next float16.
                    rtol = 1e-3 if a[output].dtype == np.float16 else 1e-4
                    np.testing.assert_allclose(a[output], b[output], rtol=rtol, atol=1e-5)


# --- one graph ----------------------------------------------------------------------------------


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_an_example_that_would_fix_a_free_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="size 1 along its free axis 0"):
        export_graph(
            _Double(), {"x": torch.ones(1, 3)}, {"x": {0: "batch"}}, ["y"], tmp_path / "g.onnx"
        )


def test_export_is_quiet_and_its_failure_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    example, axes = {"x": torch.ones(2, 3)}, {"x": {0: "batch"}}
    export_graph(_Double(), example, axes, ["y"], tmp_path / "good.onnx")
    with pytest.raises(ExportError, match="could not export bad at opset 20") as caught:
        export_graph(Broken(), example, axes, ["y"], tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_altered_graph_is_refused(
    small_preset: Preset, small_bundle: Path, tmp_path: Path
) -> None:
    sam = NOISE.load_sam(small_preset)[0]
    golden = golden_cases("sam_decoder", SamDecoderGraph(sam), sam_decoder_cases(256, 64))
    path = small_bundle / "sam_decoder.onnx"
    assert all(c.passed for c in check_graph("sam_decoder", path, golden, threads=1))

    model = onnx.load(path)
    weights = next(t for t in model.graph.initializer if t.name == "no_mask")
    values = onnx.numpy_helper.to_array(weights).copy()
    values.flat[7] += 0.1
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(
        ExportError, match=r"sam_decoder in fp32 does not agree.*logits.*\(1e-04 is allowed\)"
    ):
        check_graph("sam_decoder", tmp_path / "altered.onnx", golden, threads=1)


@pytest.mark.parametrize(
    ("found", "max_rel", "rms_rel"),
    [
        ([1, 2, 4], 0, 0),
        ([1, 2, 5], 1 / 4, 1 / 21**0.5),
        ([1, 1, 1], 3 / 4, (10 / 21) ** 0.5),
        ([1, 2, np.nan], np.inf, np.inf),
        ([1, 2, -np.inf], np.inf, np.inf),
        ([1, 2], np.inf, np.inf),
    ],
)
def test_what_an_output_is_off_by(found: list[float], max_rel: float, rms_rel: float) -> None:
    expected = np.array([1, 2, 4], np.float32)
    check = compare("sam_encoder", "", "", expected, np.array(found, np.float32), "int8")
    assert check.max_rel == pytest.approx(max_rel)
    assert check.rms_rel == pytest.approx(rms_rel)
    limit = TOLERANCES["int8"]
    assert check.passed == (max_rel <= limit.max_rel and rms_rel <= limit.rms_rel)


def test_table_does_not_round_an_overlap_up_to_one() -> None:
    table = format_table(
        [{"mask_iou": 0.99996, "passed": True}, {"mask_iou": 1.0, "passed": False}]
    )
    assert table.splitlines() == ["mask_iou  passed", "0.999960  yes", "1         NO"]


# --- building again -----------------------------------------------------------------------------


def _must_not_run(*_: object) -> None:
    raise AssertionError("exported again")


def test_unchanged_graphs_are_taken_over(
    bundle: Path, small_preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (bundle / f"{name}.onnx").stat().st_ino for name in GRAPHS}
    monkeypatch.setattr(floating, "export_graph", _must_not_run)

    report = build(BuildOptions(small_preset, bundle, NOISE, categories=("gear wheel",), threads=1))

    assert report.unchanged == tuple(GRAPHS)
    assert {name: (bundle / f"{name}.onnx").stat().st_ino for name in GRAPHS} == before
    assert report.graphs  # their figures came along
    opened = Bundle.open(bundle)
    assert opened.text("gear wheel").shape == (128, 2)
    assert opened.manifest.categories[0] == "object"


@pytest.mark.parametrize("change", ["weights", "opset"])
def test_changed_graphs_are_exported(
    change: str, bundle: Path, small_preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "weights": BuildOptions(small_preset, bundle, Checkpoints(random_seed=2), threads=1),
        "opset": BuildOptions(small_preset, bundle, NOISE, opset=23, threads=1),
    }[change]
    monkeypatch.setattr(floating, "export_graph", _must_not_run)
    with pytest.raises(AssertionError, match="exported again"):
        build(options)


# --- whole or not at all ------------------------------------------------------------------------


def _fail(error: BaseException) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ExportError("does not agree"), 1, "error: does not agree"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was changed."),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    ],
    ids=["parity", "ctrl-c", "full disk"],
)
def test_a_failed_build_leaves_what_was_there(
    error: BaseException,
    code: int,
    words: str,
    bundle: Path,
    small_preset: Preset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = _content(bundle.parent)
    monkeypatch.setitem(PRESETS, "tiny", small_preset)
    monkeypatch.setattr(whole_bundle, "check_end_to_end", _fail(error))

    arguments = ["--random-weights", "1", "--threads", "1", "--output", str(bundle)]
    assert build_engines.main(arguments) == code

    assert words in capsys.readouterr().err.splitlines()[-1]
    assert _content(bundle.parent) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_failed_swap_puts_the_old_bundle_back(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipsam.export.bundle.staging import staged_bundle

    before = _content(bundle.parent)
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if self.name.startswith(".bundle.") and target == bundle:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OutputError, match="Permission denied"), staged_bundle(bundle) as folder:
        (folder / "manifest.json").write_text("{}")
    assert _content(bundle.parent) == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_only_bundles_are_replaced(bundle: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    check_replaceable(tmp_path / "new")
    check_replaceable(photos)  # empty
    (photos / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(OutputError, match="is not a bundle, so it will not be replaced"):
        check_replaceable(photos)
    with pytest.raises(OutputError, match="is not a bundle"):
        check_replaceable(photos / "manifest.json")
    (bundle / "manifest.json").write_text("{")  # damaged, still ours: "build it again" must work
    check_replaceable(bundle)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_sentence(tmp_path: Path, small_preset: Preset) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="could not be written"):
        build(BuildOptions(small_preset, tmp_path / "bundle", NOISE))
    tmp_path.chmod(0o700)


# --- the command --------------------------------------------------------------------------------


def test_choices_are_the_real_ones() -> None:
    assert set(build_engines.PRESET_NAMES) == set(PRESETS)
    assert build_engines.OPSETS == OPSETS
    assert build_engines.ATTENTIONS == ATTENTIONS
    assert build_engines._categories(["metal nut", "gear, brake disc,"]) == (
        "metal nut",
        "gear",
        "brake disc",
    )


def test_the_script_uses_its_own_clone_from_any_directory(tmp_path: Path) -> None:
    shadow = tmp_path / "clipsam" / "runtime"
    shadow.mkdir(parents=True)
    for folder in (shadow.parent, shadow):
        (folder / "__init__.py").write_text("raise RuntimeError('the wrong clipsam')")
    script = REPOSITORY / "export" / "build_engines.py"
    done = subprocess.run(
        [sys.executable, str(script), "--preset", "vit-b", "--clip-weights", "none.pt"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: There is no file none.pt: the CLIP weights must be OpenAI's")
    assert not (tmp_path / "bundles").exists()


def _attend_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_build_that_is_stopped_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    output = tmp_path / "bundles" / "tiny"
    script = [sys.executable, str(REPOSITORY / "export" / "build_engines.py")]
    build = subprocess.Popen(
        [*script, "--random-weights", "0", "--threads", "1", "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_attend_interrupts,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not output.parent.exists():
        time.sleep(0.05)
    time.sleep(1)  # somewhere in the first graphs
    build.send_signal(number)
    _, errors = build.communicate(timeout=60)
    assert build.returncode == code, errors
    assert b"Traceback" not in errors
    assert not output.parent.exists()


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_engines.main(["--preset", "huge"])
    assert caught.value.code == 2
    assert "invalid choice: 'huge'" in capsys.readouterr().err
