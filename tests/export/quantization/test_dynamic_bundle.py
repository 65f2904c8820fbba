"""Bundles with int8-dynamic: gated graph by graph, used on the CPU, and float32 where it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsam.export import build_engines
from clipsam.export.bundle import variants
from clipsam.export.bundle import whole as whole_bundle
from clipsam.export.bundle.build import BuildOptions, BuildReport, build
from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.parity import bundle_vs_reference, onnx_vs_torch
from clipsam.export.parity.onnx_vs_torch import DisagreementError
from clipsam.export.precisions.recipes import TOLERANCES
from clipsam.export.quantization import dynamic_int8, floating
from clipsam.export.trt.build import build_engines as build_engines_on_box
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.core.errors import ExportError, ProviderError
from clipsam.runtime.pipeline import ClipSAM

pytestmark = pytest.mark.slow  # exports

PRECISION = "int8-dynamic"


def _options(preset: Preset, folder: Path) -> BuildOptions:
    noise = Checkpoints(random_seed=1)  # that of `small_bundle`
    return BuildOptions(preset, folder, noise, precisions=(PRECISION,), threads=1)


@pytest.fixture(scope="module")
def dynamic(
    small_preset: Preset, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BuildReport]:
    """The small bundle built on in int8-dynamic, and the report of that."""
    folder = tmp_path_factory.mktemp("bundles") / "dynamic"
    shutil.copytree(small_bundle, folder)
    return folder, build(_options(small_preset, folder))


def _own(folder: Path) -> dict[str, str]:
    bundle = Bundle.open(folder)
    return {name: bundle.graph_entry(name, PRECISION).precision for name in GRAPHS}


def _opened(folder: Path, precision: str | None = None) -> dict[str, str]:
    with ClipSAM.open(folder, threads=1, precision=precision) as model:
        return {name: session.precision for name, session in model.sessions.items()}


def test_int8_dynamic_is_built_and_within_tolerance(dynamic: tuple[Path, BuildReport]) -> None:
    folder, report = dynamic
    bundle = Bundle.open(folder)
    assert bundle.precisions == ("fp32", PRECISION)  # nothing else is needed
    assert report.refused == ()
    assert _own(folder) == {
        "clip_umci": PRECISION, "sam_encoder": PRECISION, "sam_decoder": "fp32",
    }  # fmt: skip
    graphs = [c for c in report.graphs if c.precision == PRECISION]
    assert {c.graph for c in graphs} == {"clip_umci", "sam_encoder"}
    assert max(c.max_rel for c in graphs) > 10 * TOLERANCES["fp32"].max_rel  # it is int8 that ran
    whole = [c for c in report.end_to_end if c.precision == PRECISION]
    assert len(whole) == 4
    assert all(c.mask_iou >= 0.98 and c.same_verdict and c.passed for c in whole)
    assert any(c.prompts for c in whole)
    figures = json.loads((folder / "parity.json").read_text())
    assert figures["refused"] == {}
    assert figures["layers"][PRECISION]["sam_encoder"]["share"] == 1.0
    assert len(figures["layers"][PRECISION]["sam_encoder"]["int8"]) == 8
    assert set(bundle.manifest.parity[PRECISION]["graphs"]) == {"clip_umci", "sam_encoder"}


def test_the_cpu_runs_int8_dynamic_unless_told_otherwise(dynamic: tuple[Path, BuildReport]) -> None:
    folder, _ = dynamic
    assert _opened(folder) == _own(folder)
    assert _opened(folder, "fp32") == dict.fromkeys(GRAPHS, "fp32")
    image = sample_from_seed(5, 200, defect_rate=1.0).image
    with (
        ClipSAM.open(folder, threads=1, precision="fp32") as exact,
        ClipSAM.open(folder, threads=1) as fast,
    ):
        a, b = exact.inspect(image), fast.inspect(image)
    assert np.abs(a.score_map - b.score_map).max() > 0
    assert np.abs(a.score_map - b.score_map).mean() < 0.02


def test_it_is_for_the_cpu_alone(dynamic: tuple[Path, BuildReport]) -> None:
    folder, _ = dynamic
    with pytest.raises(ProviderError, match="'int8-dynamic' is for provider 'cpu' alone and can"):
        ClipSAM.open(folder, "cuda", precision=PRECISION)
    with pytest.raises(ExportError, match="int8-dynamic is for provider cpu alone and has no eng"):
        build_engines_on_box(folder, [PRECISION])


def _must_not_run(*_: object) -> None:
    raise AssertionError("made again")


def test_an_int8_graph_is_taken_over_by_the_next_build(
    dynamic: tuple[Path, BuildReport],
    small_preset: Preset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(dynamic[0], tmp_path / "bundle"))
    monkeypatch.setattr(floating, "export_graph", _must_not_run)
    monkeypatch.setattr(dynamic_int8, "DynamicQuantizer", _must_not_run)
    report = build(_options(small_preset, folder))
    made = {f"{name}.{PRECISION}" for name in ("clip_umci", "sam_encoder")}
    assert set(report.unchanged) == {*GRAPHS, *made}


def _failing(graph: str) -> Callable[..., Any]:
    """`check_graph` for which one graph is out of tolerance in int8-dynamic, however it is made."""
    check = onnx_vs_torch.check_graph

    def checked(name: str, path: Path, cases: Any, precision: str, *rest: Any) -> Any:
        if (name, precision) == (graph, PRECISION):
            raise DisagreementError("", "rough of 'noise' is off by 9.1e-01 of its mean")
        return check(name, path, cases, precision, *rest)

    return checked


def test_float32_stands_in_for_a_graph_that_fails(
    small_bundle: Path,
    small_preset: Preset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    monkeypatch.setitem(PRESETS, "tiny", small_preset)
    arguments = ["--random-weights", "1", "--threads", "1", "--output", str(folder)]
    sentence = (
        "clip_umci stays fp32 in int8-dynamic: rough of 'noise' is off by 9.1e-01 of its mean."
    )
    with monkeypatch.context() as patch:
        patch.setattr(variants, "check_graph", _failing("clip_umci"))
        assert build_engines.main([*arguments, "--precision", PRECISION]) == 0
    assert sentence in capsys.readouterr().out
    assert _opened(folder) == {
        "clip_umci": "fp32", "sam_encoder": PRECISION, "sam_decoder": "fp32",
    }  # fmt: skip
    assert not list(folder.glob("clip_umci.int8*"))
    figures = json.loads((folder / "parity.json").read_text())
    assert set(figures["layers"][PRECISION]) == {"sam_encoder"}


def test_graphs_that_fail_together_are_all_left_in_float32(
    dynamic: tuple[Path, BuildReport],
    small_preset: Preset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Path(shutil.copytree(dynamic[0], tmp_path / "bundle"))
    check = bundle_vs_reference.check_end_to_end

    def checked(bundle: Bundle, *rest: Any) -> Any:
        if rest[-1] == PRECISION:
            raise DisagreementError("", "the verdict differs on 'gray 400x120'")
        return check(bundle, *rest)

    monkeypatch.setattr(whole_bundle, "check_end_to_end", checked)
    report = build(_options(small_preset, folder))
    assert {sentence.split()[0] for sentence in report.refused} == {"clip_umci", "sam_encoder"}
    assert "stays fp32 in int8-dynamic: the verdict differs on 'gray" in report.refused[0]
    assert Bundle.open(folder).precisions == ("fp32",)
    assert not list(folder.glob("*.int8-dynamic.onnx*"))
    assert {c.precision for c in report.graphs} == {"fp32"}
    assert _opened(folder) == dict.fromkeys(GRAPHS, "fp32")
