"""Which rows tables 2 and 3 get, and where their weights are found; then a run with toy engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipsam.research import ablations as ablations_module
from clipsam.research.ablations import Ablations, find_runs
from clipsam.research.evaluation import opening
from clipsam.research.evaluation.ablation_rows import (
    RoughMap,
    Variant,
    missing_rows,
    table_2,
    table_3,
)
from clipsam.research.evaluation.paper_tables import published
from clipsam.research.models.checkpoints import save_weights
from clipsam.research.models.presets import PRESETS
from clipsam.research.models.umci import UMCIConfig, UMCIStages
from clipsam.runtime.stages.prompts import PromptOptions

OPTIONS = PromptOptions()


def maker(level: float) -> RoughMap:
    def rough(taps: Sequence[Tensor], text: Tensor, size: int) -> Tensor:
        return torch.full((1, size, size), level)

    return rough


def test_the_rows_carry_the_papers_names() -> None:
    strip, scale, umci, similarity = (maker(v) for v in (0.1, 0.2, 0.3, 0.4))
    rows = table_2(OPTIONS, similarity, umci, {"strip": strip, "scale": scale})
    assert {r.name for r in rows} == {r.method for r in published(2, "mvtec")}
    assert [r.name for r in rows if not r.refine] == ["w/o MMR"]
    base = UMCIConfig()
    others = [(replace(base, hidden_dim=c), strip) for c in (194, 256)]
    others += [(replace(base, pool_sizes=s), scale) for s in ((2, 4), (6, 10))]
    others.append((replace(base, paths=("strip",)), strip))  # of table 2: no row here
    rows = table_3(OPTIONS, base, umci, others)
    assert {r.name for r in rows} == {r.method for r in published(3, "mvtec")}
    by_name = {r.name: r for r in rows}
    assert by_name["c_h 384"].maker is by_name["s 3 & 9"].maker is umci
    assert by_name["c_h 194"].maker is strip
    assert by_name["thr 0.45"].prompts.threshold == 0.45
    assert by_name["thr 0.47"].prompts == OPTIONS


def test_weights_are_found_by_what_they_say(tmp_path: Path) -> None:
    preset = PRESETS["tiny"]
    narrow = replace(preset.umci, hidden_dim=16)
    foreign = replace(preset.umci, visual_dim=64)
    for name, config in (("a", narrow), ("b", foreign)):
        state = UMCIStages(config).state_dict()
        path = tmp_path / name / "umci.safetensors"
        save_weights(state, path, "umci", {"umci": config.to_json()})
    (tmp_path / "umci-broken.safetensors").write_bytes(b"x")
    assert find_runs(tmp_path, preset) == {tmp_path / "a" / "umci.safetensors": narrow}


def test_rows_left_out_are_named_with_the_command_that_makes_them() -> None:
    assert "--paths scale" in missing_rows(2, ["strip path only"])[0]
    left = missing_rows(3, ["c_h 384", "s 3 & 9", "c_h 256"])
    assert [line.split(" left out")[0] for line in left] == ["c_h 194", "s 2 & 4", "s 6 & 10"]


def test_every_row_goes_its_own_way_and_sam_sees_the_image_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With fakes for CLIP, SAM and their fusion: proves the bookkeeping, not the figures."""
    monkeypatch.setattr(
        "clipsam.research.ablations.fuse",
        lambda rough, masks, weight: rough + weight * (masks is not None),
    )
    weak, strong = maker(0.46), maker(0.8)
    rows = [
        Variant("weak", weak, OPTIONS),
        Variant("lower", weak, replace(OPTIONS, threshold=0.45)),
        Variant("rough", strong, OPTIONS, refine=False),
        Variant("full", strong, OPTIONS),
    ]

    class Sam:
        encoded, decoded = 0, 0

        def encode(self, image: object) -> SimpleNamespace:
            self.encoded += 1
            return SimpleNamespace()

        def decode(self, embedding: object, prompts: object) -> SimpleNamespace:
            self.decoded += 1
            return SimpleNamespace()

    ablations: Any = Ablations.__new__(Ablations)
    ablations.mask_weight = 1.0
    ablations.variants, ablations.masks_per_box, sam = rows, 3, Sam()
    ablations.sam = sam
    ablations.features = type("F", (), {"image_size": 16, "__call__": lambda s, x: [x]})()
    ablations.device = "cpu"
    ablations._text = {"object": torch.zeros(1, 4, 2)}
    finals = ablations.finals(np.zeros((20, 30, 3), np.uint8), "object")
    means = {name: float(final.mean()) for name, (final, _) in finals.items()}
    wanted = {"weak": 0.46 / 4, "lower": 1.46 / 4, "rough": 0.8 / 4, "full": 1.8 / 4}
    np.testing.assert_allclose([means[k] for k in wanted], list(wanted.values()), rtol=1e-5)
    assert (sam.encoded, sam.decoded) == (1, 2)


def test_clip_and_sam_run_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The models move to `--device`, the bundle opens on `--provider`; on a CPU, both by name."""
    asked: list[object] = []
    opened = opening.open_bundle

    def remembered(bundle: object, *flags: object) -> object:
        asked.append(flags)
        return opened(bundle, *flags)  # type: ignore[arg-type]

    monkeypatch.setattr(ablations_module, "open_bundle", remembered)
    few = [str(tiny_bundle), "synthetic", "--count", "12", "--each", "1"]
    assert ablations_module.main([*few, "--device", "cpu", "--provider", "cpu"]) == 0
    assert asked == [("cpu", None, "fp32")]
    assert "tiny on cpu, SAM of" in capsys.readouterr().out
    assert ablations_module.main([*few, "--device", "nowhere"]) == 1
    assert "--device nowhere cannot be used here" in capsys.readouterr().err
    assert len(asked) == 1
