"""The tiny models from nothing: the commands of the recipe, a step each, and what they leave."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.research import pretrain_tiny
from clipsam.research.data.datasets import SYNTHETIC_TEST_SEED
from clipsam.research.models.checkpoints import load_clip, load_sam, save_weights
from clipsam.research.models.presets import PRESETS
from clipsam.research.models.tiny import IN_SAM
from clipsam.research.pretrain_tiny import main as pretrain
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.research.training import sam_task as pretrain_sam
from clipsam.research.training.clip_task import VALIDATION_SEED, share_metrics
from clipsam.research.training.sam_prompts import seen_prompts
from clipsam.research.training.sam_task import PromptedMasks
from clipsam.runtime.core.errors import WeightsError

pytestmark = pytest.mark.slow  # trains

TINY = PRESETS["tiny"]


def _pretrain(model: str, folder: Path, steps: Sequence[str]) -> int:
    few = ["--batch_size", "2", "--validation_images", "2", "--workers", "0", "--device", "cpu"]
    return pretrain([model, "--save_path", str(folder), *few, *steps])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clip.safetensors` after a step of each stage, and `sam.safetensors` after two."""
    folder = tmp_path_factory.mktemp("tiny")
    stages = ["--steps_embedding", "1", "--steps", "1", "--steps_full", "1"]
    assert _pretrain("clip", folder, stages) == 0
    assert _pretrain("sam", folder, ["--steps", "2"]) == 0
    return folder


def test_sam_looks_through_the_embedding_of_its_clip(trained: Path) -> None:
    clip, _ = load_clip(TINY, trained / "clip.safetensors")
    sam, _ = load_sam(TINY, trained / "sam.safetensors")
    theirs = clip.visual.conv1.state_dict()
    mine = {
        name[len(IN_SAM) :]: value
        for name, value in sam.state_dict().items()
        if name.startswith(IN_SAM)
    }
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    with safe_open(trained / "sam.safetensors", framework="pt") as file:
        stored = list(file.keys())
    assert not [name for name in stored if name.startswith(IN_SAM)]  # kept once


def test_training_moved_all_of_sam_but_the_shared_part(trained: Path) -> None:
    sam, _ = load_sam(TINY, trained / "sam.safetensors")
    last = sam.image_encoder.blocks[0].attn.proj.weight.detach()  # zero when training starts
    assert float(last.abs().max()) > 0


def test_a_shared_embedding_has_to_be_beside_sam(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "sam.safetensors"
    shutil.copy(trained / "sam.safetensors", alone)
    with pytest.raises(WeightsError, match="in one folder") as caught:
        load_sam(TINY, alone)
    assert str(alone.with_name("clip.safetensors")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_embedding_of_another_clip_is_refused(trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "sam.safetensors"
    shutil.copy(trained / "sam.safetensors", alone)
    other = Checkpoints(random_seed=5).load_clip(TINY)[0]
    save_weights(other.state_dict(), tmp_path / "clip.safetensors", "clip")
    with pytest.raises(WeightsError, match="another CLIP") as caught:
        load_sam(TINY, alone)
    assert "pretrain_tiny sam" in str(caught.value)


def test_a_sam_file_that_holds_its_embedding_needs_no_clip(tmp_path: Path) -> None:
    random = Checkpoints(random_seed=5).load_sam(TINY)[0]
    save_weights(random.state_dict(), tmp_path / "sam.safetensors", "sam")
    loaded, _ = load_sam(TINY, tmp_path / "sam.safetensors")
    state = random.state_dict()
    assert all(torch.allclose(v, state[n], 1e-3, 1e-3) for n, v in loaded.state_dict().items())


def test_sam_before_its_clip_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _pretrain("sam", tmp_path, ["--steps", "1"]) == 1
    message = capsys.readouterr().err
    assert "There is no file" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "flag",
    [
        "--batch_size 0",
        "--steps -1",
        "--validation_images x",
        "--learning_rate -1",
        "--seed 99999999",
    ],
)
def test_a_wrong_number_is_answered_before_anything_starts(flag: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        pretrain(["sam", "--save_path", str(tmp_path / "run"), *flag.split()])
    assert caught.value.code == 2
    assert not (tmp_path / "run").exists()


def test_without_pictures_to_validate_on_the_last_weights_stay(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copy(trained / "clip.safetensors", tmp_path)
    assert _pretrain("sam", tmp_path, ["--steps", "1", "--validation_images", "0"]) == 0
    load_sam(TINY, tmp_path / "sam.safetensors")


@pytest.mark.parametrize("seed", [16, 32, 2**26])
def test_no_seed_trains_on_held_out_pictures(
    seed: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 16 once began with the first picture of CLIP's validation, seed 32 with SAM's."""
    drawn: list[int] = []

    def no_training(task: object, dataset: Any, config: object) -> dict[str, float]:
        drawn.extend(dataset.seed + i for i in (0, len(dataset) - 1))
        assert len(dataset[len(dataset) - 1]) > 0  # a seed too large for the draws fails here
        return {}

    monkeypatch.setattr(pretrain_tiny, "run", no_training)
    shutil.copy(trained / "clip.safetensors", tmp_path)
    for model in ("sam", "clip"):
        assert _pretrain(model, tmp_path, ["--seed", str(seed)]) == 0
    assert len(drawn) == 8
    held_out = (VALIDATION_SEED, pretrain_sam.VALIDATION_SEED, SYNTHETIC_TEST_SEED)
    assert not [x for x in drawn if any(first <= x < first + 2**30 for first in held_out)]


def test_good_pictures_alone_give_no_score() -> None:
    samples = [sample_from_seed(seed, 64, defect_rate=0) for seed in range(2)]
    assert share_metrics(samples, lambda image: torch.zeros(1, 16, 16)) == {}


def test_another_round_starts_from_the_last(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "clip.safetensors", tmp_path)
    more = ["--steps", "1", "--learning_rate", "0", "--initial_weights"]
    assert _pretrain("sam", tmp_path, [*more, str(trained / "sam.safetensors")]) == 0
    first, second = (load_sam(TINY, x / "sam.safetensors")[0] for x in (trained, tmp_path))
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert _pretrain("sam", tmp_path, [*more, str(trained / "clip.safetensors")]) == 1
    assert "no SAM's" in capsys.readouterr().err


def test_prompts_lie_on_the_image_and_targets_near_them() -> None:
    size = 128
    dataset = PromptedMasks(size, 3, 24)
    empty = 0
    for item in (dataset[i] for i in range(24)):
        box, points, masks = item["box"], item["points"], item["mask"]
        assert masks.shape[1:] == (size // 4, size // 4)
        assert bool((box[:, :2] <= box[:, 2:]).all())
        for place in (box, points):
            assert bool(((place >= 0) & (place <= size - 1)).all())
        empty += int((masks.flatten(1).sum(dim=1) == 0).sum())
    assert 0 < empty < 24 * 2  # false alarms are there, and are the fewer


def test_what_was_seen_becomes_prompts_right_or_wrong() -> None:
    seen, share = np.zeros((32, 32), np.float32), np.zeros((32, 32), np.float32)
    seen[4:8, 10:14], share[4:8, 12:20] = 0.9, 1.0  # half of it on a longer defect
    seen[20:24, 2:6] = 0.9  # a false alarm
    seen[28, 28:31] = 0.6  # no peak
    prompts = seen_prompts(seen, share, np.random.default_rng(0), 4)
    assert len(prompts) == 2
    by_left = sorted(prompts, key=lambda prompt: float(prompt[0][0]))
    for (box, points, _), (x, y) in zip(by_left, [(2, 20), (10, 4)], strict=True):
        np.testing.assert_array_equal(box, [4 * x, 4 * y, 4 * x + 15, 4 * y + 15])
        assert ((points >= [4 * x, 4 * y]) & (points <= [4 * x + 15, 4 * y + 15])).all()
    assert not by_left[0][2].any()
    target = by_left[1][2].astype(np.bool_)
    assert target[4:8, 12:16].all()  # what lies near the component
    assert not target[:, 16:].any()
    assert len(seen_prompts(seen, share, np.random.default_rng(0), 1)) == 1
