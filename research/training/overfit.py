"""The early check before a long run: can one batch be learned by heart?

If not, something is wrong that no amount of training repairs: masks that do not belong to their
images, text features that are not there, a learning rate of the wrong size.
"""

from __future__ import annotations

from pathlib import Path

from clipsam.research.data.items import Batch, Item, collate
from clipsam.research.training.distributed import Processes
from clipsam.research.training.loop import LoopConfig, Task, make_optimizer, take_step

ENOUGH = 0.5  # the loss must fall below this share of what it was


def defective_batch(items: list[Item], batch_size: int) -> Batch:
    """The first `batch_size` items, those with a defect before those without."""
    ordered = sorted(items, key=lambda item: not bool(item[1].any()))  # keeps their order else
    return collate(ordered[:batch_size])


def overfit(task: Task, batch: Batch, learning_rate: float, steps: int) -> tuple[float, float]:
    """Train on the batch again and again; the loss before and after. Nothing is saved."""
    config = LoopConfig(steps, len(batch[1]), learning_rate, Path(), weight_decay=0.0)
    optimizer = make_optimizer([p for p in task.module.parameters() if p.requires_grad], config)
    losses = [
        take_step(task, batch, optimizer, learning_rate, Processes())[0] for _ in range(steps + 1)
    ]
    return losses[0], losses[-1]  # of the weights after no step and after `steps` steps


def verdict(before: float, after: float, steps: int) -> tuple[bool, str]:
    """Whether the batch was learned, and a sentence for the person."""
    figures = f"loss {before:.4f} before, {after:.4f} after {steps} steps on one batch"
    if after < ENOUGH * before:
        return True, f"{figures}: it can be overfitted, training can begin."
    return False, (
        f"{figures}: it could not be overfitted (wanted below {ENOUGH * before:.4f}). Look at the "
        "masks of the first images, check --clip_weights, and try --overfit_steps "
        f"{4 * steps} or another --learning_rate before a long run."
    )
