"""`clipsam adapt`: planted defects on good parts, resumed to the bit, written only when better."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from clipsam.export import adapt as command
from clipsam.export.bundle.build import BuildOptions
from clipsam.export.graphs.checkpoints import weights_folder
from clipsam.research.data import planted
from clipsam.research.data.items import SyntheticImages
from clipsam.research.models.checkpoints import load_umci
from clipsam.research.models.presets import PRESETS
from clipsam.research.training import adapt_task, adaptation, run_settings
from clipsam.research.training.adaptation import Adapted
from clipsam.runtime.core.errors import OutputError, WeightsError
from clipsam.runtime.options import InspectOptions

WEIGHTS = Path(__file__).parents[2] / "weights" / "tiny"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of a bright part on a dark tray."""
    folder = tmp_path_factory.mktemp("parts") / "good"
    folder.mkdir()
    for number in range(8):
        rng = np.random.default_rng(number)
        image = np.clip(rng.normal(50, 4, (150, 200, 3)), 0, 255).astype(np.uint8)
        cv2.ellipse(image, (100, 75), (60 + number, 45), 10, 0, 360, (120, 160, 190), -1)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little of everything."""
    monkeypatch.setattr(adaptation, "_EACH", 1)
    monkeypatch.setattr(adaptation, "_BATCH", 2)
    monkeypatch.setattr(adaptation, "_VALIDATE_EVERY", 1)
    monkeypatch.setattr(adapt_task, "REPLAYED", 3)


def figures(
    value: float, procedural: float = 0.9, true: float = 0.5
) -> dict[str, dict[str, float]]:
    row = {"image_auroc": value, "pixel_auroc": value, "pixel_ap": value}
    procedural_row = {**row, "pixel_ap": procedural}
    return {"planted": row, "procedural": procedural_row, "true": {"image_auroc": true}}


@pytest.mark.slow  # trains
def test_a_killed_run_ends_with_the_same_weights(parts: Path, tmp_path: Path) -> None:
    def go(work: Path, steps: int) -> Adapted:
        from clipsam.research.models.checkpoints import load_clip

        preset = PRESETS["tiny"]
        clip, umci = load_clip(preset, None)[0], load_umci(preset, None)[0]
        options = adaptation.AdaptOptions(parts, "object", work, steps=steps, pool=3)
        work.mkdir(exist_ok=True)
        return adaptation.adapt(options, preset, clip, umci, {"umci": "a"}, torch.device("cpu"))

    whole = go(tmp_path / "whole", 2)
    go(tmp_path / "cut", 1)  # as if killed after the first checkpoint
    resumed = go(tmp_path / "cut", 2)
    assert whole.facts["steps"] == resumed.facts["steps"] == 2
    assert all(torch.equal(whole.tensors[n], resumed.tensors[n]) for n in whole.tensors)
    start = load_umci(PRESETS["tiny"], None)[0].state_dict()
    assert any(not torch.equal(whole.tensors[n], start[n]) for n in start), "it learned"
    assert whole.before == resumed.before
    assert whole.after == resumed.after


@pytest.mark.slow  # trains
def test_the_embedding_is_trained_and_sam_keeps_its_own(parts: Path, tmp_path: Path) -> None:
    from clipsam.research.models.checkpoints import load_clip, load_sam

    preset = PRESETS["tiny"]
    clip, umci, sam = load_clip(preset, None)[0], load_umci(preset, None)[0], load_sam(preset, None)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    options = adaptation.AdaptOptions(parts, "object", tmp_path, steps=1, embedding=True)
    adapted = adaptation.adapt(options, preset, clip, umci, {"umci": "a"}, torch.device("cpu"))
    assert adapted.embedding is not None
    paths = command._save(adapted, tmp_path, preset, clip, sam[0], "")
    after = load_clip(preset, paths["clip"])[0].state_dict()
    moved = {n for n in before if (after[n] - before[n]).float().abs().max() > 1e-6}
    assert moved
    assert all(name.startswith("visual.conv1.") for name in moved)
    kept = load_sam(preset, paths["sam"])[0].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in sam[0].state_dict().items())


def fake(
    monkeypatch: pytest.MonkeyPatch, after: float, procedural: float = 0.9, true: float = 0.5
) -> list[BuildOptions]:
    """The command without training and export: what it would build."""
    built: list[BuildOptions] = []

    def adapt(
        options: adaptation.AdaptOptions, _p: Any, _c: Any, umci: Any, digests: Any, _d: Any
    ) -> Adapted:
        tensors: Mapping[str, Any] = {k: v + 0.01 for k, v in umci.state_dict().items()}
        facts = {"category": options.category, "steps": 7, "seed": 0, "from": dict(digests)}
        before, later = figures(0.5), figures(after, procedural, true)
        return Adapted(before, later, tensors, None, facts)

    monkeypatch.setattr(command, "adapt", adapt)
    monkeypatch.setattr(command, "build", built.append)
    return built


def test_better_weights_become_a_bundle_and_stay_beside_it(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = fake(monkeypatch, 0.7)
    output = tmp_path / "mine"
    arguments = ["tiny", "--good", str(parts), "--output", str(output), "--category", "gear wheel"]
    assert command.main([*arguments, "--precision", "fp16"]) == 0
    out = capsys.readouterr().out
    assert "50.0 to  70.0" in out
    assert "no longer zero-shot" in out
    (options,) = built
    assert options.categories == ("gear wheel",)
    assert (options.precisions, options.attention) == (("fp16",), "mask-free")
    assert options.adapted is not None
    assert json.loads(json.dumps(options.adapted))["after"]["planted"]["pixel_ap"] == 0.7
    kept = weights_folder(output) / "umci.safetensors"
    old, new = load_umci(PRESETS["tiny"], None)[0], load_umci(PRESETS["tiny"], kept)[0]
    name = next(iter(old.state_dict()))
    moved = new.state_dict()[name] - old.state_dict()[name]
    assert moved.mean() == pytest.approx(0.01, abs=1e-3)
    assert not (tmp_path / "mine.adapting").exists()


@pytest.mark.parametrize(
    ("after", "procedural", "true", "reason"),
    [
        (0.505, 0.9, 0.5, "It is no better: image AUROC"),
        (0.3, 0.9, 0.5, "It is no better: image AUROC"),
        (0.8, 0.9, 0.4, "It is no better on true defects"),
        (0.8, 0.7, 0.5, "It forgot"),
    ],
)
def test_no_bundle_is_written_where_it_is_no_better(
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: float,
    procedural: float,
    true: float,
    reason: str,
) -> None:
    built = fake(monkeypatch, after, procedural, true)
    output = tmp_path / "mine"
    assert command.main(["tiny", "--good", str(parts), "--output", str(output)]) == 3
    assert reason in capsys.readouterr().out
    assert not built
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_named_before_any_work(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = ["--output", str(tmp_path / "out")]
    cases = [
        (["tiny", "--good", str(empty), *out], "holds 0 pictures"),
        (["tiny", "--good", str(tmp_path / "none"), *out], "is not a folder"),
        (["nothing", "--good", str(parts), *out], "neither a bundle's folder nor one of"),
        ([str(empty), "--good", str(parts), *out], "There is no bundle"),
        ([str(empty), "--good", str(parts), "--output", str(empty)], "another --output"),
        (["tiny", "--good", str(parts), *out, "--category", " "], "cannot be a product's word"),
        (["tiny", "--good", str(parts), *out, "--defective", str(empty)], "holds no pictures"),
        (["tiny", "--good", str(parts), "--output", str(parts)], "is not a bundle"),
    ]
    for arguments, sentence in cases:
        assert command.main(arguments) == 1
        assert sentence in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["empty"], "nothing is left behind"


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    with command._alone(tmp_path / "work"):
        with (
            pytest.raises(OutputError, match="Another process is adapting"),
            command._alone(tmp_path / "work"),
        ):
            pass
        assert (tmp_path / "work" / "lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_items_are_drawn_by_seed_and_place_alone(parts: Path) -> None:
    good = planted.read_good_parts(parts, 96, InspectOptions())
    split = planted.split_parts(good, 0)
    names = [{p.name for p in group} for group in (split.train, split.choose, split.report)]
    assert sum(map(len, names)) == 8
    assert len(set.union(*names)) == 8
    assert all(names)
    data = planted.PlantedParts(split.train, 96, "part", 3, 12)
    again = planted.PlantedParts(split.train, 96, "part", 3, 12)
    for index in (7, 0, 4, 0):
        first, second = data[index], again[index]
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    defective = [bool(data[i][1].any()) for i in range(0, 12, 2)]
    assert any(defective)
    replayed = SyntheticImages(96, 3 * 2**36 + 2**35, 9)
    assert torch.equal(data[5][0], replayed[2][0])
    other = planted.PlantedParts(split.train, 96, "part", 4, 12)
    assert not torch.equal(other[0][0], data[0][0])


def test_nothing_is_planted_where_nothing_counts(parts: Path) -> None:
    ignore = np.ones((150, 200), np.bool_)
    ignore[:, 100:] = False
    view = InspectOptions(roi=(20, 0, 160, 150), ignore=ignore)
    good = planted.read_good_parts(parts, 96, view)
    assert {part.image.shape for part in good} == {(150, 160, 3)}
    data = planted.PlantedParts(good, 96, "part", 3, 40)
    masks = torch.stack([data[index][1] for index in range(0, 40, 2)])
    assert masks.any()
    left, right = masks[:, :, :48].any(dim=(1, 2)), masks[:, :, 48:].any(dim=(1, 2))
    assert left.any()
    assert right.any()  # mirrored
    assert not (left & right).any()


def test_what_is_looked_at_must_fit_the_pictures_and_stay_the_same(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["tiny", "--good", str(parts), "--output", str(tmp_path / "out")]
    assert command.main([*asked, "--roi", "20,0,190,150"]) == 1
    assert "0.png: The image has 200x150 pixels and the roi" in capsys.readouterr().err
    view = InspectOptions(roi=(20, 0, 160, 150))
    options = adaptation.AdaptOptions(parts, "object", tmp_path, view=view)
    run_settings.keep_settings(tmp_path, adaptation._settings(options, {"umci": "a"}))
    (tmp_path / "last.pt").touch()
    with pytest.raises(WeightsError, match="view"):
        run_settings.check_settings(
            tmp_path, adaptation._settings(replace(options, view=InspectOptions()), {"umci": "a"})
        )


def test_true_defects_count_where_they_are_looked_at(tmp_path: Path) -> None:
    for folder in ("test/bad", "ground_truth/bad"):
        (tmp_path / folder).mkdir(parents=True)
    mask = np.zeros((100, 120), np.uint8)
    mask[10:30, 10:30] = mask[60:90, 70:110] = 255
    cv2.imwrite(str(tmp_path / "ground_truth/bad/a_mask.png"), mask)
    cv2.imwrite(str(tmp_path / "test/bad/a.png"), np.full((100, 120, 3), 90, np.uint8))
    ignore = np.zeros((100, 120), np.bool_)
    ignore[:50] = True
    view = InspectOptions(roi=(0, 0, 100, 100), ignore=ignore)
    (item,), masks = adaptation.true_defects(tmp_path / "test/bad", 100, "part", view)
    assert masks
    assert torch.equal(item[1].bool(), torch.from_numpy((mask > 0) & ~ignore)[:, :100])


def test_another_run_in_the_work_folder_is_not_mixed_in(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = adaptation.AdaptOptions(parts, "object", tmp_path)
    settings = adaptation._settings(options, {"umci": "a"})
    run_settings.keep_settings(tmp_path, settings)
    (tmp_path / "last.pt").touch()
    run_settings.check_settings(tmp_path, settings)
    other = adaptation._settings(replace(options, seed=1), {"umci": "a"})
    with pytest.raises(WeightsError, match=r"seed 0, now it is 1: .* another --output"):
        run_settings.check_settings(tmp_path, other, "--output")
