"""Wall clock and CPU time of named stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Both = tuple[float, float]  # wall clock, and CPU time of all threads with the kernel's part, in ms
Stages = dict[str, Both]


class Clock:
    """Times stages; one that is entered twice adds up.

    `wait` is called before each reading: on a GPU, what was started has to have finished.

    Attributes:
      stages: what has been timed since it was last emptied.
    """

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.stages: Stages = {}
        self._wait = wait
        self._started: dict[str, Both] = {}

    def start(self, name: str) -> None:
        self._wait()
        self._started[name] = _now()

    def stop(self, name: str) -> None:
        self._wait()
        (wall, cpu), (wall_then, cpu_then) = _now(), self._started.pop(name)
        before = self.stages.get(name, (0.0, 0.0))
        self.stages[name] = before[0] + wall - wall_then, before[1] + cpu - cpu_then

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.start(name)
        yield
        self.stop(name)


def total(stages: Stages) -> Both:
    """The sum of all stages."""
    return sum(wall for wall, _ in stages.values()), sum(cpu for _, cpu in stages.values())


def _now() -> Both:
    return time.perf_counter() * 1e3, time.process_time() * 1e3
