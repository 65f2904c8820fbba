"""What runs on every worker: a bundle that is opened once, and the shards that come to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipsam.runtime.batch.attempts import MOST, Attempts
from clipsam.runtime.batch.judge import Picture, judge, read_pictures
from clipsam.runtime.batch.pictures import Columns
from clipsam.runtime.batch.places import Place
from clipsam.runtime.batch.plan import Shard, sources_of
from clipsam.runtime.batch.results import Row, row_of, write_shard
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.core.errors import BundleError, ClipSAMError, ImageError
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
    """Inspects shards; Ray Data keeps one in every worker process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._opened: ClipSAM | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Inspect the shards of a batch of Ray Data's, and say what each came to.

        Our own errors are among the answers, by `error` and `kind`: Ray would wrap them up until
        only their text is left.
        """
        done = []
        for values in zip(*(batch[name] for name in ("plan", "number", "pictures")), strict=True):
            shard, counts, error = Shard(*map(int, values)), Counts(), None
            try:
                counts = self.inspect(shard)
            except ClipSAMError as raised:
                error = raised
            said = {"error": str(error or ""), "kind": type(error).__name__}
            done.append({**asdict(shard), **asdict(counts), **said})
        return {name: np.array([row[name] for row in done]) for name in done[0]}

    def inspect(self, shard: Shard) -> Counts:
        """Inspect a shard and write its results; returns what they come to.

        Raises as `ClipSAM.open`, BundleError where the bundle is another one, OutputError.
        """
        output = self._task.output
        model = self._opened = self._opened or self._open()
        attempts = Attempts(output, shard)
        begun = attempts.begin()
        pictures = read_pictures(sources_of(output, shard), self._task.columns)
        rows = (self._carefully if begun else self._rows)(model, pictures, attempts)
        counts = write_shard(output, shard, rows)
        attempts.end()
        return counts

    def _open(self) -> ClipSAM:
        task = self._task
        model = ClipSAM.open(
            task.bundle,
            task.provider,
            task.threads,
            task.precision,
            options=task.options,
            calibration=task.calibration,
        )
        if model.bundle.id != task.bundle_id:
            raise BundleError(
                f"{task.bundle} is bundle {model.bundle.id} on one machine and {task.bundle_id} on "
                "another: copy the same one to all."
            )
        return model

    def _rows(self, model: ClipSAM, pictures: Iterable[Picture], _: Attempts) -> Iterator[Row]:
        return judge(model, pictures, self._task.category, self._task.norm)

    def _carefully(
        self, model: ClipSAM, pictures: Iterable[Picture], attempts: Attempts
    ) -> Iterator[Row]:
        for number, picture in enumerate(pictures):
            if attempts.allows(number):
                yield from self._rows(model, [picture], attempts)
            else:
                error = ImageError(
                    f"{picture.name} ended the process that inspected it, {MOST} times: open it in "
                    "a viewer, and see whether the machine had memory left."
                )
                yield row_of({"image": picture.name, "id": picture.id}, error)
