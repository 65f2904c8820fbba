"""The gate: engines that are wrong, silently or not, are refused by name.

Any `Session` can be judged; here onnxruntime runs graphs that are right or deliberately wrong in
place of TensorRT, alone or behind the stand-in that the whole of `--engines-only` runs on. That
shows that the gate tells them apart, not what TensorRT makes of a graph.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.engine_toy import engines, fake_workshop
from support.golden_toy import break_normalisation, build_golden_toy, rehash

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.onnx_export import export_graph
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.parity.golden import GoldenOutputs, read_golden
from clipsam.export.parity.golden_record import open_all
from clipsam.export.parity.half_emulation import emulate
from clipsam.export.parity.onnx_vs_torch import checkable
from clipsam.export.quantization.half import IN_FLOAT32, HalfPrecision
from clipsam.export.trt.build import build_engines
from clipsam.export.trt.gate import GateError, check_session, check_whole, safer_precision
from clipsam.research.models.presets import Preset
from clipsam.runtime.backends.base import Array, Session, SessionWrapper, open_session
from clipsam.runtime.bundle import Bundle

THERE = ("fp32", "fp16", "bf16", "int8")


class Altered(SessionWrapper):
    """A session whose outputs are changed, from its nth run on."""

    def __init__(self, inner: Session, output: str, factor: float, start: int = 0) -> None:
        super().__init__(inner)
        self.precision = "fp16"
        self._output, self._factor, self._left = output, factor, start

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        found = super()._run(feeds, wanted)
        self._left -= 1
        if self._left < 0:
            found[self._output] = found[self._output] * np.float32(self._factor)
        return found


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, GoldenOutputs]:
    folder = build_golden_toy(tmp_path_factory.mktemp("toy") / "bundle", "fp16")
    return Bundle.open(folder), read_golden(folder)


def test_right_engines_pass_the_gate(toy: tuple[Bundle, GoldenOutputs]) -> None:
    bundle, golden = toy
    with open_all(bundle, 1) as sessions:
        for name, session in sessions.items():
            cases = golden.cases_for(name, "fp16")
            checks = check_session(name, session, cases, "fp16", THERE)
            assert len(checks) == 2 * sum(len(case.outputs) for case in cases)
            assert max(check.max_rel for check in checks) == 0
        whole = check_whole(bundle, sessions, golden.pictures, "fp16")
    assert len(whole) == len(golden.pictures)
    assert all(check.passed for check in whole)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_an_engine_out_of_tolerance_is_refused(
    toy: tuple[Bundle, GoldenOutputs], start: int
) -> None:
    """Also one whose second run, as a replayed graph, is the wrong one."""
    bundle, golden = toy
    with open_all(bundle, 1) as sessions:
        wrong = Altered(sessions["sam_encoder"], "embedding", 1.05, start)
        message = (
            r"engine of sam_encoder in fp16 does not agree with the float32 graph: embedding of "
            r"'.*' is off by .*e-02 of its largest value \(3e-02 is allowed\); it was not written: "
            r"build it with --precision bf16, or let --fallback do so; "
            r"`clipsam diagnose BUNDLE sam_encoder --precision fp16 --case .*` finds the layer "
            r"\(what is allowed of fp16 is provisional: set on small models\)\.$"
        )
        with pytest.raises(GateError, match=message) as caught:
            check_session(
                "sam_encoder", wrong, golden.cases_for("sam_encoder", "fp16"), "fp16", THERE
            )
    assert (caught.value.graph, caught.value.precision) == ("sam_encoder", "fp16")
    assert caught.value.safer == "bf16"


def test_an_engine_that_overflows_is_refused(toy: tuple[Bundle, GoldenOutputs]) -> None:
    bundle, golden = toy
    cases = golden.cases_for("sam_decoder", "fp16")
    with open_all(bundle, 1) as sessions:
        wrong = Altered(sessions["sam_decoder"], "scores", np.nan)
        with pytest.raises(
            GateError, match="scores of '1 prompts' has values that are not numbers"
        ):
            check_session("sam_decoder", wrong, cases, "fp16", THERE)
        whole = {**sessions, "sam_decoder": wrong}
        with pytest.raises(
            GateError, match=r"engines in fp16 fail on the picture 'defect' \(.*not"
        ):
            check_whole(bundle, whole, golden.pictures, "fp16")


def test_engines_that_are_wrong_together(toy: tuple[Bundle, GoldenOutputs]) -> None:
    bundle, golden = toy
    with open_all(bundle, 1) as sessions:
        wrong = {**sessions, "clip_umci": Altered(sessions["clip_umci"], "rough", 0.3)}
        with pytest.raises(
            GateError, match=r"do not agree .* on the picture 'defect': .*the verdict differs"
        ) as caught:
            check_whole(bundle, wrong, golden.pictures, "fp16")
        assert (caught.value.graph, caught.value.safer) == (None, "tf32")


def test_no_golden_outputs_are_no_pass(toy: tuple[Bundle, GoldenOutputs]) -> None:
    bundle, golden = toy
    with open_all(bundle, 1) as sessions:
        with pytest.raises(GateError, match="has no golden outputs of sam_encoder"):
            check_session("sam_encoder", sessions["sam_encoder"], [], "fp16", THERE)
        good = [picture for picture in golden.pictures if not len(picture.prompts)]
        assert good
        with pytest.raises(GateError, match="No golden picture reaches SAM"):
            check_whole(bundle, sessions, good, "fp16")


def test_the_safer_precision_is_the_next_the_bundle_has() -> None:
    assert safer_precision("int8", THERE) == "fp16"
    assert safer_precision("int8", ("fp32", "int8")) == "tf32"  # which needs no graphs of its own
    assert safer_precision("bf16", THERE) == "tf32"
    assert safer_precision("tf32", THERE) == "fp32"
    assert safer_precision("fp32", THERE) is None
    assert safer_precision("fp16", ("fp32", "fp16", "bf16")) == "bf16"  # as the runtime goes on


def test_the_toys_overflow_is_silent_and_caught(
    toy: tuple[Bundle, GoldenOutputs], tmp_path: Path
) -> None:
    _bundle, golden = toy
    break_normalisation(tmp_path / "sam_encoder.fp16.onnx")
    cases = golden.cases_for("sam_encoder", "fp16")
    with (
        checkable(tmp_path / "sam_encoder.fp16.onnx", "fp16") as path,
        open_session(path, "cpu", 1) as session,
    ):
        assert np.isfinite(session.run(cases[0].feeds)["embedding"]).all()
        with pytest.raises(GateError, match=r"sam_encoder in fp16 .* is off by"):
            check_session("sam_encoder", session, cases, "fp16", THERE)


def with_fp16(bundle: Path, encoder: Path) -> None:
    """Give a float32 bundle fp16 graphs: `encoder`, and of the others its own."""
    path = bundle / "manifest.json"
    values = json.loads(path.read_text())
    values["variants"]["fp16"] = {
        name: {**entry, "file": f"{name}.fp16.onnx", "precision": "fp16"}
        for name, entry in values["variants"]["fp32"].items()
    }
    for name in ("clip_umci", "sam_decoder"):
        shutil.copy(bundle / f"{name}.onnx", bundle / f"{name}.fp16.onnx")
    shutil.copy(encoder, bundle / "sam_encoder.fp16.onnx")
    path.write_text(json.dumps(values))
    rehash(bundle)


@pytest.mark.slow  # exports
@pytest.mark.parametrize("normalisations", ["float32", "half"])
def test_an_encoder_with_half_precision_layer_norm_is_caught(
    normalisations: str, small_preset: Preset, small_bundle: Path, tmp_path: Path
) -> None:
    """The field's best known failure: SAM's encoder in fp16 with its normalisations in fp16, on
    values whose squares overflow there. Its output is finite and wrong, and `--engines-only` does
    not write it. The same encoder with normalisations in float32 is written.

    Large values before the neck's LayerNorm2d, which takes their scale out again: what the bundle
    golden is what this encoder says in float32, too. The stand-in for TensorRT runs the graph
    with every rounding written out (export/parity/half_emulation.py), which onnxruntime leaves out.
    """
    sam = Checkpoints(random_seed=1).load_sam(small_preset)[0]  # of small_bundle
    for convolution in (sam.image_encoder.neck[0], sam.image_encoder.neck[2]):
        convolution.weight.data *= 3000
    kept = IN_FLOAT32 if normalisations == "float32" else ()
    module = HalfPrecision(SamEncoderGraph(sam), "fp16", in_float32=kept)
    size = small_preset.sam.image_size
    example = {
        "image": torch.zeros(1, size, size, 3, dtype=torch.uint8),
        "valid_size": torch.tensor([size, size]),
    }
    export_graph(module, example, {}, ["embedding"], tmp_path / "half.onnx")
    emulate(tmp_path / "half.onnx", tmp_path / "encoder.onnx")
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    with_fp16(bundle, tmp_path / "encoder.onnx")
    with fake_workshop():
        if kept:
            assert build_engines(bundle, ["fp16"]).written[1] == "sam_encoder fp16"
            return
        with pytest.raises(
            GateError,
            match=r"engine of sam_encoder in fp16 does not agree .* is off by .*; it was not "
            "written: build it with --precision tf32",
        ):
            build_engines(bundle, ["fp16"])
        assert engines(bundle) == set()
