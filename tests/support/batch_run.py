"""Batches without Ray: plans, and a worker in this process."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet

from clipsam.runtime.batch.pictures import Columns, find_sources
from clipsam.runtime.batch.places import Place
from clipsam.runtime.batch.plan import Plan, Shard, keep_settings
from clipsam.runtime.batch.results import read_counts
from clipsam.runtime.batch.run import settings_of
from clipsam.runtime.batch.worker import Task, Worker
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.options import InspectOptions


def make_task(toy: Path, output: Path | str, **changed: Any) -> Task:
    """Inspect with the toy, and write to `output`."""
    told: dict[str, Any] = {
        "bundle": toy,
        "bundle_id": Bundle.open(toy, verify=False).id,
        "provider": "cpu",
        "threads": 1,
        "precision": None,
        "options": InspectOptions(),
        "calibration": None,
        "category": "object",
        "norm": "fixed",
        "output": Place.of(str(output)),
        "columns": Columns(),
        **changed,
    }
    return Task(**told)


def plan(task: Task, inputs: Sequence[object], size: int = 2) -> list[Shard]:
    """Plan what a batch would; returns the shards without results."""
    sources = find_sources([str(given) for given in inputs], task.columns, task.output)
    keep_settings(task.output, settings_of(task))
    planned = Plan(task.output)
    planned.add(sources, size)
    done = read_counts(task.output, planned.shards)
    return [shard for shard in planned.shards if shard not in done]


def work(task: Task, inputs: Sequence[object], size: int = 2) -> list[dict[str, Any]]:
    """Do what a batch would, in this process; returns all rows."""
    worker = Worker(task)
    for shard in plan(task, inputs, size):
        worker.inspect(shard)
    return rows(task.output)


def rows(output: Place) -> list[dict[str, Any]]:
    """All rows of an OUTPUT, as any reader of Parquet folders finds them."""
    table = pyarrow.parquet.read_table(output.path, filesystem=output.files)
    return list(table.to_pylist())


def in_memory(folder: Path) -> str:
    """The address of a store of fsspec's, in this process, that holds the folder's files."""
    store, root = fsspec.filesystem("memory"), f"/{secrets.token_hex(8)}"
    for path in folder.rglob("*"):
        if path.is_file():
            store.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory:/{root}"


def write_table(path: Path, columns: dict[str, Any], row_group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group)
    return path
