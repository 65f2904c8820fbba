"""The training loop that every stage shares: schedule, log, validation, checkpoint, resume.

A step's batch depends on the step number and the seed alone, and the checkpoint holds weights,
optimizer and step, so a run that was killed and started again ends where an uninterrupted one
ends. Checkpoints are written to a temporary name and renamed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from clipsam.runtime.errors import WeightsError


class Task(Protocol):
    """What is trained: a module to optimise and the loss of a batch."""

    @property
    def module(self) -> nn.Module:
        """Its parameters that require a gradient are trained, its state is kept."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss to minimise and figures for the log."""

    def validate(self) -> dict[str, float]:
        """Figures on a fixed validation set; the key "score" ranks checkpoints (higher wins)."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train, and where to keep the state."""

    steps: int
    batch_size: int
    learning_rate: float
    save_path: Path
    weight_decay: float = 0.05
    beta2: float = 0.999  # lower adapts faster after a steep start
    warmup: int = 150
    workers: int = 1
    validate_every: int = 500
    final_fraction: float = 0.02  # of the learning rate, at the end of the cosine


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then a cosine down to `final_fraction`."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def run(
    task: Task,
    dataset: Dataset[Any],
    config: LoopConfig,
    collate: Callable[[list[Any]], Any] | None = None,
) -> dict[str, float]:
    """Train from the last checkpoint (or from nothing) to `config.steps`; returns the best scores.

    `dataset` must hold at least steps * batch_size items; item i always holds the same sample.
    The best state by `validate()["score"]` is loaded into `task.module` at the end.
    """
    config.save_path.mkdir(parents=True, exist_ok=True)
    last, best = config.save_path / "last.pt", config.save_path / "best.pt"
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )
    start, best_scores = _resume(last, task, optimizer)
    batches = _batches(dataset, config, start, collate)
    bar = tqdm(total=config.steps, initial=start, unit="step", mininterval=2, smoothing=0.05)
    running: dict[str, float] = {}
    task.module.train()
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        loss, figures = task.loss(next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.update()
        for name, value in {"loss": loss.item(), **figures}.items():
            running[name] = 0.98 * running.get(name, value) + 0.02 * value
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            scores = _validate(task)
            if not best_scores or scores["score"] > best_scores["score"]:
                best_scores = scores
                save_atomically(task.module.state_dict(), best)
            state = {
                "step": step + 1,
                "module": task.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best_scores": best_scores,
            }
            save_atomically(state, last)
            _log(config.save_path / "log.jsonl", {"step": step + 1, **running, **scores})
            bar.set_postfix({k: f"{v:.3g}" for k, v in {**running, **scores}.items()})
    bar.close()
    if best.exists():
        task.module.load_state_dict(torch.load(best, weights_only=True, map_location="cpu"))
    return best_scores


def save_atomically(state: Any, path: Path) -> None:
    """`torch.save` to a temporary name beside `path`, then rename."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _resume(
    last: Path, task: Task, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, float]]:
    if not last.exists():
        return 0, {}
    try:
        state = torch.load(last, weights_only=True, map_location="cpu")
        task.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        raise WeightsError(
            f"{last} cannot be resumed from ({type(error).__name__}: {str(error)[:200]}); "
            "delete it to start again, or train into another --save_path."
        ) from error
    return int(state["step"]), dict(state["best_scores"])


def _batches(
    dataset: Dataset[Any],
    config: LoopConfig,
    start: int,
    collate: Callable[[list[Any]], Any] | None,
) -> Iterator[Any]:
    rest = range(start * config.batch_size, config.steps * config.batch_size)
    loader: Iterable[Any] = DataLoader(
        Subset(dataset, rest),
        batch_size=config.batch_size,
        num_workers=config.workers,
        collate_fn=collate,
        worker_init_fn=_single_thread,
        # Forked workers inherit OpenCV's locked thread pool and hang in its first call.
        multiprocessing_context="spawn" if config.workers else None,
        prefetch_factor=8 if config.workers else None,
    )
    return iter(loader)


def _single_thread(_worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _validate(task: Task) -> dict[str, float]:
    task.module.eval()
    with torch.no_grad():
        scores = task.validate()
    task.module.train()
    return scores


def _log(path: Path, row: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"time": round(time.time()), **row}) + "\n")
