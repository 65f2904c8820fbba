"""Training with words that do not fit: what the pictures' targets become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.training_files import write_weights

from clipsam.research.data.items import Epochs, Reworded, SyntheticImages, collate
from clipsam.research.data.wording import PLAIN, SWAPPED, UNRELATED, draw_wording
from clipsam.research.models.presets import PRESETS, build_clip
from clipsam.research.models.prompt_ensemble import ABNORMAL_STATES, text_features
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.research.train import main as train
from clipsam.research.training.umci_task import UmciTask


def test_wordings_are_drawn_in_their_shares() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_wording(rng, 0.4) for _ in range(4000)]
    assert abs(drawn.count(PLAIN) / 4000 - 0.6) < 0.03
    assert abs(drawn.count(SWAPPED) / 4000 - 0.2) < 0.03
    assert set(drawn) == {PLAIN, SWAPPED, *UNRELATED}
    assert {draw_wording(rng, 0.0) for _ in range(100)} == {PLAIN}


def test_no_unrelated_word_means_damage() -> None:
    assert not set(UNRELATED) & {word for state in ABNORMAL_STATES for word in state.split()}


@pytest.fixture(scope="module")
def task() -> UmciTask:
    torch.manual_seed(0)
    clip = build_clip("tiny")
    return UmciTask(PRESETS["tiny"], clip, torch.device("cpu"), validation=1)


def test_the_text_says_what_the_wording_says(task: UmciTask) -> None:
    plain = text_features(task.clip, task.tokenizer, "nut")
    text = task.text(["nut"] * 3, [PLAIN, SWAPPED, UNRELATED[0]])
    torch.testing.assert_close(text[0], plain)
    torch.testing.assert_close(text[1], plain.flip(1))
    torch.testing.assert_close(text[2, :, 0], plain[:, 0])
    assert (text[2, :, 1] - plain[:, 1]).abs().max() > 0.01


def test_the_target_follows_the_wording(task: UmciTask) -> None:
    """A model that answers "everything is abnormal" has the lowest loss where that is asked."""
    image, mask, category, _ = SyntheticImages(task.size, 5, 1)[0]
    full = torch.ones_like(mask)
    certain = torch.tensor([-6.0, 6.0])[None, :, None, None].expand(1, 2, task.size, task.size)
    task._logits = lambda *_: [certain] * 2  # type: ignore[method-assign]
    losses = {}
    for wording in (PLAIN, SWAPPED, UNRELATED[0]):
        batch = collate([(image, full, category, wording)])
        losses[wording] = task.loss(batch)[0].item()
    assert losses[PLAIN] < 0.01
    assert min(losses[SWAPPED], losses[UNRELATED[0]]) > 1


def test_the_score_of_steered_training_asks_for_listening(
    task: UmciTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map that stays under swapped words is worse than one a little less exact that turns."""
    found = {
        "deaf": {PLAIN: (0.9, 0.6), SWAPPED: (0.9, 0.6)},
        "steered": {PLAIN: (0.88, 0.5), SWAPPED: (0.1, 0.05)},
    }
    scores = {}
    for name, by_wording in found.items():
        monkeypatch.setattr(
            task,
            "_metrics",
            lambda wording, by=by_wording: {
                "auroc": by[wording][0], "ap": by[wording][1], "f1_max": 0.5,
            },
        )  # fmt: skip
        monkeypatch.setattr(task, "steering", True)
        scores[name] = task.validate()["score"]
        monkeypatch.setattr(task, "steering", False)
        assert task.validate()["score"] == by_wording[PLAIN][1]
    assert scores["steered"] > scores["deaf"]


@pytest.mark.slow  # trains
def test_steered_training_runs_and_is_saved(tmp_path: Path) -> None:
    arguments = ["--preset", "tiny", "--dataset", "synthetic", "--save_path", str(tmp_path)]
    arguments += ["--clip_weights", str(write_weights(tmp_path) / "clip.safetensors")]
    few = ["--validation_images", "3", "--workers", "0", "--device", "cpu", "--batch_size", "2"]
    assert train([*arguments, *few, "--steps", "2", "--steering", "0.5", "--bf16"]) == 0
    assert (tmp_path / "umci.safetensors").exists()


@pytest.mark.slow  # trains
def test_features_of_a_fixed_number_of_images_are_kept_and_get_new_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--preset", "tiny", "--dataset", "synthetic", "--save_path", str(tmp_path)]
    arguments += ["--clip_weights", str(write_weights(tmp_path) / "clip.safetensors")]
    arguments += ["--validation_images", "3", "--workers", "0", "--device", "cpu"]
    arguments += ["--batch_size", "2", "--synthetic_images", "3", "--steering", "0.5"]
    assert train([*arguments, "--steps", "2"]) == 0
    assert "computing 3 images" in capsys.readouterr().out
    assert train([*arguments, "--steps", "4"]) == 0
    assert "3 images from the cache" in capsys.readouterr().out
    fresh = np.load(next(tmp_path.glob("features/*/masks.npy")))
    np.testing.assert_array_equal(fresh[1], sample_from_seed(1, 192).mask)

    items = Reworded(Epochs(SyntheticImages(64, 0, 3), 0, 40), 0, 0.5)
    words = [items[i][3] for i in range(len(items))]
    assert 0.3 < sum(word != PLAIN for word in words) / len(words) < 0.7
    assert words == [items[i][3] for i in range(len(items))]
    assert words[:60] != words[60:]  # the words belong to the place, not to the image
