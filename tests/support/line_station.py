"""A station on the toy bundle, for the tests of `clipsam watch`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.images.reader import write_png
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.part import Part
from clipsam.runtime.station.sources.base import Captured, Source
from clipsam.runtime.station.sources.files import state_of
from clipsam.runtime.station.station import Options, Station
from clipsam.runtime.station.store import Store
from support.toy_bundle import bright_square


def good_part(number: int = 0) -> NDArray[np.uint8]:
    """A good part unlike any other."""
    return np.random.default_rng(number).integers(20, 40, (40, 60, 3), np.uint8)


def bad_part() -> NDArray[np.uint8]:
    return bright_square(60, 80, (20, 15, 25, 20))


class ListSource(Source):
    """Gives what it is handed: paths relative to a folder, frames, or whole captures."""

    def __init__(self, items: Iterable[object], folder: Path | None = None) -> None:
        self._items, self._folder, self.given = deque(items), folder, 0

    def poll(self, seconds: float) -> Captured | None:
        if not self._items:
            return None
        item = self._items.popleft()
        self.given += 1
        if isinstance(item, Captured):
            return item
        if isinstance(item, np.ndarray):
            return Captured(f"camera 0 frame {self.given}", image=item)
        if callable(item):
            item()
            return None
        assert self._folder is not None
        path = self._folder / str(item)
        if (state := state_of(path)) is None:  # a folder does not tell of what is gone
            return None
        return Captured(str(item), path, state=state)

    @property
    def ended(self) -> bool:
        return not self._items


def write_part(folder: Path, name: str, image: NDArray[np.uint8]) -> Path:
    path = folder / name
    write_png(path, image)
    return path


def run_station(
    toy: Path,
    store: Path,
    source: Source,
    options: Options | None = None,
    prepare: Callable[[Station], None] = lambda station: None,
) -> tuple[list[Part], Health]:
    """Run a station to the end of its source; its answers and its health."""
    answers: list[Part] = []
    with Store(store, create=True) as opened, ClipSAM.open(toy, threads=1) as model:
        opened.claim()
        station = Station(model, opened, source, options or Options(), [answers.append])
        prepare(station)
        try:
            station.run()
        finally:
            source.close()
    return answers, station.health


def parts_of(store: Path) -> list[Part]:
    with Store(store, read_only=True) as opened:
        return list(opened.parts())
