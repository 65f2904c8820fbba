"""The shared training loop: resuming is exact; and `research/train.py` on a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from clipsam.research.loop import LoopConfig, learning_rate_at, run
from clipsam.runtime.errors import WeightsError


class Numbers(Dataset[Tensor]):
    """Item i is a vector made from i."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(index))


class Fit:
    """Fit a linear layer to the sum of its input; stops like a killed run at step `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        torch.manual_seed(0)
        self.module: nn.Module = nn.Linear(4, 1)
        self.stop, self.steps = stop, 0

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        if self.steps == self.stop:
            raise KeyboardInterrupt
        self.steps += 1
        return (self.module(batch)[:, 0] - batch.sum(dim=1)).square().mean(), {}

    def validate(self) -> dict[str, float]:
        wanted = torch.ones(1, 4)
        return {"score": -float((self.module.weight - wanted).square().sum())}


def config(path: Path, **changes: Any) -> LoopConfig:
    base = LoopConfig(30, 4, 1e-2, path, warmup=5, workers=0, validate_every=10)
    return replace(base, **changes)


def test_a_killed_run_ends_where_an_uninterrupted_one_ends(tmp_path: Path) -> None:
    whole = Fit()
    scores = run(whole, Numbers(), config(tmp_path / "whole"))
    killed = Fit(stop=17)
    with pytest.raises(KeyboardInterrupt):
        run(killed, Numbers(), config(tmp_path / "parts"))
    resumed = Fit()
    assert run(resumed, Numbers(), config(tmp_path / "parts")) == scores
    assert resumed.steps == 20  # from the checkpoint of step 10, not from the start
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_finished_run_does_nothing_again(tmp_path: Path) -> None:
    first = Fit()
    scores = run(first, Numbers(), config(tmp_path))
    again = Fit()
    assert run(again, Numbers(), config(tmp_path)) == scores
    assert again.steps == 0
    torch.testing.assert_close(again.module.state_dict(), first.module.state_dict())


def test_the_best_state_is_kept_not_the_last(tmp_path: Path) -> None:
    class Worse(Fit):
        def validate(self) -> dict[str, float]:
            return {"score": -float(self.steps)}

    task = Worse()
    assert run(task, Numbers(), config(tmp_path))["score"] == -10
    kept = torch.load(tmp_path / "best.pt", weights_only=True)
    last = torch.load(tmp_path / "last.pt", weights_only=True)["module"]
    torch.testing.assert_close(task.module.state_dict(), kept)
    assert not torch.equal(kept["weight"], last["weight"])


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run(Fit(), Numbers(), config(tmp_path, steps=10))
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"last\.pt cannot be resumed from .* delete it"):
        run(Fit(), Numbers(), config(tmp_path))


def test_learning_rate_warms_up_and_decays(tmp_path: Path) -> None:
    settings = config(tmp_path)
    rates = [learning_rate_at(step, settings) for step in range(30)]
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.1 * settings.learning_rate
