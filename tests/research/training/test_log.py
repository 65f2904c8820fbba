"""The picture of a run's curves, and TensorBoard's files."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipsam.research.training.log import TrainingLog, draw_curves, read_log


def coloured(picture: np.ndarray) -> np.ndarray:
    """Pixels of the curves: neither white nor gray."""
    spread = picture.max(axis=2).astype(int) - picture.min(axis=2)
    return np.asarray(spread > 60)


def test_a_falling_loss_is_drawn_falling() -> None:
    rows = [{"step": s, "loss": 2 - s / 100, "learning_rate": 1e-4} for s in range(0, 101, 10)]
    picture = draw_curves(rows)
    assert picture is not None
    assert picture.shape == (300, 900, 3)
    ys, xs = np.nonzero(coloured(picture)[40:260])
    left, right = ys[xs < 200].mean(), ys[xs > 750].mean()
    assert left < 60 < 160 < right  # rows are counted from the top


def test_losses_and_scores_have_a_panel_each() -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "score": 0.3, "auroc": 0.6}]
    picture = draw_curves(rows)
    assert picture is not None
    assert picture.shape == (600, 900, 3)
    assert coloured(picture[300:]).any()


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 5, "loss": 1.0}],  # one point
        [{"step": s, "loss": 0.5} for s in range(3)],  # a flat line
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}],
        [{"step": 1, "loss": float("nan")}],
    ],
)
def test_odd_rows_are_drawn_as_far_as_they_go(rows: list[dict[str, float]]) -> None:
    picture = draw_curves(rows)
    assert picture is not None
    assert picture.shape == (300, 900, 3)


def test_no_figures_draw_no_curves() -> None:
    assert draw_curves([]) is None
    assert draw_curves([{"step": 1, "time": 2.0}]) is None


def test_rows_after_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1.0 / step})
    log.draw()
    log.close()
    assert cv2.imread(str(tmp_path / "curves.png")) is not None
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
    log.draw()
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "curves.png"}
