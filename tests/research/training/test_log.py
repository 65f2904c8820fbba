"""A run's log, and TensorBoard's files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clipsam.research.training.log import TrainingLog, read_log


def test_rows_after_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1.0 / step})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('[1]\n{"step": 4, "lo')
    TrainingLog(tmp_path, start=2).close()
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2]
    TrainingLog(tmp_path, start=0).close()
    assert read_log(tmp_path / "log.jsonl") == []


def test_tensorboard_reads_the_figures_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TrainingLog(tmp_path)
    log.add({"step": 1, "loss": 0.5})
    log.add({"step": 2, "loss": 0.25})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_training_is_logged_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # import fails
    log = TrainingLog(tmp_path)
    log.add({"step": 1, "loss": 0.5})
    log.flush()
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl"}
