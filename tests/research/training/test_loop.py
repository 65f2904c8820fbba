"""The shared training loop: resuming is exact, whenever it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from clipsam.research.training.log import read_log
from clipsam.research.training.loop import LoopConfig, learning_rate_at, run
from clipsam.runtime.core.errors import ClipSAMError, OutputError, WeightsError


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


def test_a_run_ends_after_its_time_which_resuming_does_not_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 5))  # every look takes five seconds
    monkeypatch.setattr("clipsam.research.training.loop.time.monotonic", lambda: next(clock))
    first = Fit()
    run(first, Numbers(), config(tmp_path, seconds=60.0))
    assert 5 < first.steps < 15
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == first.steps
    assert state["seconds"] >= 60
    again = Fit()
    run(again, Numbers(), config(tmp_path, seconds=60.0))
    assert again.steps == 0
    longer = Fit()
    run(longer, Numbers(), config(tmp_path, seconds=90.0))
    assert 0 < longer.steps < first.steps


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


def test_without_decay_the_learning_rate_is_constant(tmp_path: Path) -> None:
    settings = config(tmp_path, warmup=0, final_fraction=1.0)
    assert {learning_rate_at(step, settings) for step in range(30)} == {settings.learning_rate}


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path: Path) -> None:
    settings = config(tmp_path / "whole", log_every=4, checkpoint_at=(13,))
    run(Fit(), Numbers(), settings)
    rows = read_log(settings.save_path / "log.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 10, 12, 13, 16, 20, 24, 28, 30]
    assert [row["step"] for row in rows if "score" in row] == [10, 13, 20, 30]
    parts = replace(settings, save_path=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        run(Fit(stop=17), Numbers(), parts)
    log = parts.save_path / "log.jsonl"
    assert read_log(log)[-1]["step"] == 16  # three steps after the checkpoint
    with log.open("a") as file:
        file.write('{"time": 3, "st')  # cut short by a kill
    run(Fit(), Numbers(), parts)
    for row, other in zip(rows, read_log(log), strict=True):
        del row["time"], other["time"]
        assert row == other


def test_the_last_state_is_kept_where_there_is_no_score(tmp_path: Path) -> None:
    class Unscored(Fit):
        def validate(self) -> dict[str, float]:
            return {}

    task = Unscored()
    assert run(task, Numbers(), config(tmp_path)) == {}
    assert not (tmp_path / "best.pt").exists()
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert last["step"] == 30
    torch.testing.assert_close(task.module.state_dict(), last["module"])
    again = Unscored()
    assert run(again, Numbers(), config(tmp_path)) == {}
    torch.testing.assert_close(again.module.state_dict(), last["module"])


def test_a_checkpoint_without_running_figures_is_resumed_from(tmp_path: Path) -> None:
    """Checkpoints once had none; a run that began then can still go on."""
    run(Fit(), Numbers(), config(tmp_path, steps=10))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["running"]
    torch.save(state, tmp_path / "last.pt")
    task = Fit()
    run(task, Numbers(), config(tmp_path))
    assert task.steps == 20


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import torch
from test_loop import Fit, Numbers, config
from clipsam.research.training import loop

whole, writes = torch.save, 0

def save(state, file):
    global writes
    writes += 1
    if writes == 4:  # best and last of step 10, then best of step 20: now last of step 20
        file.write(b"PK half of a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(state, file)

torch.save = save
loop.run(Fit(), Numbers(), config(Path(sys.argv[1])))
"""


def test_killed_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    script = [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    assert subprocess.run(script, env=environment, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "last.pt.tmp").exists()
    resumed, whole = Fit(), Fit()
    scores = run(resumed, Numbers(), config(tmp_path / "killed"))
    assert resumed.steps == 20
    assert scores == run(whole, Numbers(), config(tmp_path / "whole"))
    for name in ("last.pt", "best.pt"):
        states = [torch.load(tmp_path / f / name, weights_only=True) for f in ("killed", "whole")]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    assert not list((tmp_path / "killed").glob("*.tmp"))


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(Fit(), Numbers(), config(tmp_path, steps=10))
    before = (tmp_path / "last.pt").read_bytes()

    def full(_state: Any, _file: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="free some space and start again"):
        run(Fit(), Numbers(), config(tmp_path))
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    class Broken(Fit):
        def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
            loss, figures = super().loss(batch)
            return loss * (float("nan") if self.steps == 15 else 1), figures

    with pytest.raises(ClipSAMError, match=r"loss became nan: lower --learning_rate"):
        run(Broken(), Numbers(), config(tmp_path))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 10


def test_too_few_items_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds 1000 items, 300 steps need 1200"):
        run(Fit(), Numbers(), config(tmp_path, steps=300))
