"""What a training run leaves to look at: log.jsonl and TensorBoard's event files.

`log.jsonl` has one line of figures for each logged step. TensorBoard's files are written into
`tensorboard/` when the library is installed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipsam.runtime.core.files import write_bytes

LOG, TENSORBOARD = "log.jsonl", "tensorboard"


class TrainingLog:
    """Appends rows to a run's log; what was logged after step `start` is dropped first.

    A run resumed from its checkpoint makes those steps again and would log them twice.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self.folder = folder
        path = folder / LOG
        if path.exists():
            kept = [row for row in read_log(path) if row.get("step", 0) <= start]
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            write_bytes(path, lines.encode())
        self._writer = _tensorboard(folder / TENSORBOARD, start)

    def add(self, row: Mapping[str, float]) -> None:
        """One row of figures; the key "step" is needed."""
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"time": round(time.time()), **row}) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(row["step"]))

    def flush(self) -> None:
        """Show TensorBoard what was logged so far."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._writer is not None:
            self._writer.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a log; a line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _tensorboard(folder: Path, start: int) -> Any:
    """A writer of event files, or None where the library is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Of an earlier, killed run, hide the steps that will be made again.
    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)
