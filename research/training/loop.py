"""The training loop that every stage shares: schedule, log, validation, checkpoint, resume.

A step's batch depends on the step number and the seed alone, and the checkpoint holds weights,
optimizer and step, so a run that was killed and started again ends where an uninterrupted one
ends. Checkpoints are written to a temporary name and renamed. Several processes (`distributed.py`)
share out the same batches.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from clipsam.research.data.loader import make_loader
from clipsam.research.training.distributed import Processes, share_of
from clipsam.research.training.ema import EMA
from clipsam.research.training.log import TrainingLog
from clipsam.runtime.core.errors import ClipSAMError, OutputError, WeightsError


class Task(Protocol):
    """What is trained: a module to optimise and the loss of a batch."""

    @property
    def module(self) -> nn.Module:
        """Its parameters that require a gradient are trained, its state is kept."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss to minimise, a mean over the batch's items, and figures for the log."""

    def validate(self) -> dict[str, float]:
        """Figures on a fixed validation set; the key "score" ranks checkpoints (higher wins).

        Without that key no checkpoint is better than another, and the last one is kept.
        """


class ParallelTask(Task, Protocol):
    """A task that several processes can share: `loss` calls `network`, set by the loop."""

    network: nn.Module


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train, and where to keep the state."""

    steps: int
    batch_size: int  # of all processes together
    learning_rate: float
    save_path: Path
    weight_decay: float = 0.05
    beta2: float = 0.999  # lower adapts faster after a steep start
    warmup: int = 150
    workers: int = 1  # of each process
    validate_every: int = 500
    final_fraction: float = 0.02  # of the learning rate, at the end of the cosine; 1: constant
    checkpoint_at: tuple[int, ...] = ()  # further numbers of steps after which to checkpoint
    average: float = 0.0  # decay of the weights' moving average that is validated and kept; 0: none
    log_every: int = 0  # steps between rows of the log beside the validations' (0: none)
    seconds: float = math.inf  # of training, over all resumptions, after which it ends


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
    processes: Processes | None = None,
) -> dict[str, float]:
    """Train from the last checkpoint (or from nothing) to `config.steps`; returns the best scores.

    With `config.seconds` it ends at the first step after that time, as if `config.steps` were that
    step: a rate that falls towards the last step is not for such a run.

    `dataset` must hold at least steps * batch_size items; item i always holds the same sample.
    The best state by `validate()["score"]` is loaded into `task.module` at the end; where there
    is no score, the last state stays. Several `processes` need a `ParallelTask`.
    """
    group = processes or Processes()
    first = group.rank == 0
    _check_length(dataset, config)
    config.save_path.mkdir(parents=True, exist_ok=True)
    last, best = config.save_path / "last.pt", config.save_path / "best.pt"
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = make_optimizer(parameters, config)
    average = EMA(task.module, config.average) if config.average else None
    start, best_scores, running, spent = _resume(last, task, optimizer, average)
    if (done := group.broadcast(start)) != start:
        raise WeightsError(
            f"{last} is at step {start} and the first process's at step {done}: give all machines "
            "a --save_path that they share, or copy that file to each."
        )
    if spent >= config.seconds:
        config = replace(config, steps=start)
    began = time.monotonic() - spent
    batches = _batches(dataset, config, start, collate, group)
    if group.world > 1:
        cast(ParallelTask, task).network = group.wrap(task.module)
    log = TrainingLog(config.save_path, start) if first else None
    timed = math.isfinite(config.seconds)  # then nobody knows how many steps there will be
    bar = tqdm(
        total=None if timed else config.steps, initial=start, unit="step", mininterval=2,
        desc=f"{config.seconds / 60:g} min" if timed else None, smoothing=0.05, disable=not first,
    )  # fmt: skip
    task.module.train()
    with contextlib.ExitStack() as stack:
        stack.callback(bar.close)
        if log is not None:
            stack.callback(log.close)
        for step in range(start, config.steps):
            rate = learning_rate_at(step, config)
            loss, figures = take_step(task, next(batches), optimizer, rate, group)
            if average is not None:
                average.update()
            for name, value in {"loss": loss, **figures}.items():
                running[name] = 0.98 * running.get(name, value) + 0.02 * value
            bar.set_postfix({k: f"{v:.3g}" for k, v in running.items()}, refresh=False)
            bar.update()
            over = time.monotonic() - began >= config.seconds
            if over or _is_checkpoint(step + 1, config):
                if log is not None:
                    with average.applied() if average is not None else contextlib.nullcontext():
                        scores = _validate(task)
                        if scores.get("score", -math.inf) > best_scores.get("score", -math.inf):
                            best_scores = scores
                            save_atomically(task.module.state_dict(), best)
                    state = {
                        "step": step + 1,
                        "module": task.module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "best_scores": best_scores,
                        "running": running,
                        "average": average.state_dict() if average is not None else None,
                    }
                    if timed:  # else the same run has the same state
                        state["seconds"] = time.monotonic() - began
                    save_atomically(state, last)
                    log.add({"step": step + 1, **running, **scores, "learning_rate": rate})
                    log.flush()
                    tqdm.write(_line(step + 1, config, {**running, **scores}))
                group.barrier()  # the others wait for the validation here
                if over:
                    break
            elif log is not None and config.log_every and (step + 1) % config.log_every == 0:
                log.add({"step": step + 1, **running, "learning_rate": rate})
    best_scores = group.broadcast(best_scores)
    if best_scores and best.exists():
        task.module.load_state_dict(torch.load(best, weights_only=True, map_location="cpu"))
    return best_scores


def make_optimizer(parameters: list[nn.Parameter], config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )


def take_step(
    task: Task,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    rate: float,
    processes: Processes,
) -> tuple[float, dict[str, float]]:
    """One step of the optimizer on a batch; the loss before it, and the task's figures.

    The norm of the gradient is limited to 1 (paper: unspecified; here a guard against the odd
    batch: AdamW divides the gradient by its own size, so that it hardly matters else).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, figures = task.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    processes.backward(loss)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    value = processes.mean(loss.detach()).item()
    if not math.isfinite(value):
        raise ClipSAMError(
            f"The loss became {value}: lower --learning_rate, or train with --precision fp32."
        )
    return value, figures


def save_atomically(state: Any, path: Path) -> None:
    """`torch.save` to a temporary name beside `path`, then rename; raises OutputError."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name with old bytes
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} could not be written ({str(error)[:200]}): free some space and start again, "
            "the run goes on from its last checkpoint."
        ) from error


def _is_checkpoint(done: int, config: LoopConfig) -> bool:
    every = done % config.validate_every == 0
    return every or done == config.steps or done in config.checkpoint_at


def _line(done: int, config: LoopConfig, figures: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"step {done} of {config.steps}: {shown}"


def _check_length(dataset: Dataset[Any], config: LoopConfig) -> None:
    wanted, held = config.steps * config.batch_size, len(cast(Sized, dataset))
    if held < wanted:
        raise ValueError(f"the data set holds {held} items, {config.steps} steps need {wanted}.")


def _resume(
    last: Path, task: Task, optimizer: torch.optim.Optimizer, average: EMA | None
) -> tuple[int, dict[str, float], dict[str, float], float]:
    """Steps done, best scores, running figures and seconds spent."""
    if not last.exists():
        return 0, {}, {}, 0.0
    try:
        state = torch.load(last, weights_only=True, map_location="cpu")
        task.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None and state.get("average") is not None:
            average.load_state_dict(state["average"])
        step, scores = int(state["step"]), dict(state["best_scores"])
    except Exception as error:
        raise WeightsError(
            f"{last} cannot be resumed from ({type(error).__name__}: {str(error)[:200]}); "
            "delete it to start again."
        ) from error
    spent = float(state.get("seconds", 0))  # older checkpoints have neither
    return step, scores, dict(state.get("running", {})), spent


def _batches(
    dataset: Dataset[Any],
    config: LoopConfig,
    start: int,
    collate: Callable[[list[Any]], Any] | None,
    processes: Processes,
) -> Iterator[Any]:
    """This process's share of every batch from step `start` on."""
    low, high = share_of(config.batch_size, processes)
    size = config.batch_size
    rest = [step * size + i for step in range(start, config.steps) for i in range(low, high)]
    return iter(make_loader(Subset(dataset, rest), high - low, config.workers, collate))


def _validate(task: Task) -> dict[str, float]:
    task.module.eval()
    with torch.no_grad():
        scores = task.validate()
    task.module.train()
    return scores
