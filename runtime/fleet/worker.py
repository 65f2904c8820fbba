"""What runs on every worker: a bundle that is opened once, and the shards that come to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.core.errors import BundleError, ImageError
from clipsam.runtime.fleet.attempts import MOST, Attempts
from clipsam.runtime.fleet.judge import Picture, judge, read_pictures
from clipsam.runtime.fleet.pictures import Columns
from clipsam.runtime.fleet.places import Place
from clipsam.runtime.fleet.plan import Shard, sources_of
from clipsam.runtime.fleet.results import Row, row_of, write_shard
from clipsam.runtime.folder import Counts
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.pipeline import ClipSAM


@dataclass(frozen=True)
class Task:
    """What every worker is told, once.

    Attributes:
      bundle: its folder, by the same path on every machine.
      bundle_id: of the bundle that it has to be there.
      provider, threads, precision, options, calibration: as `ClipSAM.open` takes them.
      category, norm: as `ClipSAM.inspect_many` takes them.
      output: where the results go.
      columns: of Parquet files.
    """

    bundle: Path
    bundle_id: str
    provider: str
    threads: int
    precision: str | None
    options: InspectOptions
    calibration: Calibration | None
    category: str | None
    norm: str | None
    output: Place
    columns: Columns


class Worker:
    """Inspects shards; Ray Data keeps one in every worker process. Raises as `ClipSAM.open`."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._model = ClipSAM.open(
            task.bundle,
            task.provider,
            task.threads,
            task.precision,
            options=task.options,
            calibration=task.calibration,
        )
        if self._model.bundle.id != task.bundle_id:
            raise BundleError(
                f"{task.bundle} is bundle {self._model.bundle.id} on one machine and "
                f"{task.bundle_id} on another: copy the same one to all."
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Inspect the shards of a batch of Ray Data's, and say what each came to."""
        done = []
        for values in zip(*(batch[name] for name in ("plan", "number", "pictures")), strict=True):
            shard = Shard(*map(int, values))
            done.append({**asdict(shard), **asdict(self._inspect(shard))})
        return {name: np.array([row[name] for row in done]) for name in done[0]}

    def _inspect(self, shard: Shard) -> Counts:
        output = self._task.output
        attempts = Attempts(output, shard)
        begun = attempts.begin()
        pictures = read_pictures(sources_of(output, shard), self._task.columns)
        rows = self._carefully(pictures, attempts) if begun else self._rows(pictures)
        counts = write_shard(output, shard, rows)
        attempts.end()
        return counts

    def _rows(self, pictures: Iterable[Picture]) -> Iterator[Row]:
        return judge(self._model, pictures, self._task.category, self._task.norm)

    def _carefully(self, pictures: Iterable[Picture], attempts: Attempts) -> Iterator[Row]:
        for number, picture in enumerate(pictures):
            if attempts.allows(number):
                yield from self._rows([picture])
            else:
                error = ImageError(
                    f"{picture.name} ended the process that inspected it, {MOST} times: open it in "
                    "a viewer, and see whether the machine had memory left."
                )
                yield row_of({"image": picture.name, "id": picture.id}, error)
