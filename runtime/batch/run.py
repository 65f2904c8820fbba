"""`clipsam batch`: a plan of shards, workers that take them, and what they come to."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from clipsam.runtime.batch.cluster import cluster
from clipsam.runtime.batch.pictures import find_sources
from clipsam.runtime.batch.places import Place
from clipsam.runtime.batch.plan import OWN, Plan, Shard, keep_settings
from clipsam.runtime.batch.results import read_counts
from clipsam.runtime.batch.worker import Task, Worker
from clipsam.runtime.core import errors
from clipsam.runtime.core.errors import OptionError, OutputError, SessionError
from clipsam.runtime.core.files import not_written
from clipsam.runtime.core.lock import try_lock
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.folder import Counts

_LOG = get_logger("batch")
Progress = Callable[[int, int, Counts], None]  # pictures done, of how many, and what they are


def run_batch(
    task: Task,
    inputs: Sequence[str],
    *,
    workers: int | None = None,
    address: str | None = None,
    shard_size: int = 256,
    retry: bool = False,
    progress: Progress = lambda done, total, counts: None,
) -> Counts:
    """Inspect every picture of `inputs` that has no result in `task.output` yet.

    Returns what all pictures there come to, with those done before. With `retry`, shards are done
    again in which a picture could not be read or inspected. `workers` None: as many as the
    cluster's cores (or GPUs) allow. Raises ClipSAMError.
    """
    sources = find_sources(inputs, task.columns, task.output)
    keep_settings(task.output, settings_of(task))
    with _alone(task.output):
        plan = Plan(task.output)
        if changed := plan.add(sources, shard_size):
            _LOG.warning(
                "%d files have changed since they were planned, and are not inspected again: "
                "choose another OUTPUT for them.",
                changed,
            )
        del sources
        done = read_counts(task.output, plan.shards, retry)
        left = [shard for shard in plan.shards if shard not in done]
        counts = Counts()
        for found in done.values():
            _add(counts, found)
        counts.skipped = sum(shard.pictures for shard in done)
        if left:
            total = sum(shard.pictures for shard in plan.shards)
            _work(task, left, counts, total, workers, address, progress)
    return counts


def _work(
    task: Task,
    left: Sequence[Shard],
    counts: Counts,
    total: int,
    workers: int | None,
    address: str | None,
    progress: Progress,
) -> None:
    cpus = task.threads * workers if workers else None
    with cluster(address, cpus) as ray:
        gpus = 0 if task.provider == "cpu" else 1
        most = _room(ray, task.threads, gpus)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        shards = [{"plan": s.plan, "number": s.number, "pictures": s.pictures} for s in left]
        work = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            Worker,
            fn_constructor_args=(task,),
            batch_size=None,
            batch_format="numpy",
            num_cpus=task.threads,
            num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(
                size=min(workers or most, len(shards)), max_tasks_in_flight_per_actor=1
            ),
        )
        done, machines = counts.skipped, _machines(ray)
        try:
            for batch in work.iter_batches(batch_size=None, prefetch_batches=0):
                for n in range(len(batch["plan"])):
                    if message := str(batch["error"][n]):
                        raise getattr(errors, str(batch["kind"][n]))(message)
                    _add(counts, Counts(*(int(batch[f.name][n]) for f in fields(Counts))))
                    done += int(batch["pictures"][n])
                    progress(done, total, counts)
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[-1].rstrip(".") if lines else type(error).__name__
            raise SessionError(
                f"Ray gave up ({reason}): start again, and it goes on from here."
            ) from error
        if lost := len(machines - _machines(ray)):
            _LOG.warning("%d of the machines died meanwhile; others did their shards.", lost)


def _machines(ray: Any) -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _room(ray: Any, threads: int, gpus: int) -> int:
    """How many workers the cluster has room for. Raises OptionError where there is none."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus:
        found = sum(int(resources.get("GPU", 0)) for resources in nodes)
        if not found:
            raise OptionError("No machine of the cluster has a GPU: leave --provider out.")
        return found
    found = sum(int(resources.get("CPU", 0)) // threads for resources in nodes)
    if not found:
        raise OptionError(
            f"No machine of the cluster has {threads} cores for a worker: give fewer --threads."
        )
    return found


def settings_of(task: Task) -> dict[str, Any]:
    """What decides an answer, in JSON's types."""
    return {
        "bundle": task.bundle_id,
        "category": task.category,
        "norm": task.norm,
        "provider": task.provider,
        "precision": task.precision,
        **task.options.settings(),
        "calibration": task.calibration.id if task.calibration else "",
        "image-column": task.columns.image,
        "id-column": task.columns.id,
    }


@contextmanager
def _alone(output: Place) -> Iterator[None]:
    """Keep a second batch on this machine out of the folder; an object store has no locks."""
    if not output.local:
        yield
        return
    path = Path((output / OWN / "lock").path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise not_written(path, error) from error
    try:
        if not try_lock(descriptor):
            raise OutputError(
                f"{output} is being written by another batch: wait for it, or choose another "
                "OUTPUT."
            )
        yield
    finally:
        os.close(descriptor)


def _add(counts: Counts, more: Counts) -> None:
    for field in fields(Counts):
        setattr(counts, field.name, getattr(counts, field.name) + getattr(more, field.name))
