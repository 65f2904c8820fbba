"""How long the stages of an inspection took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall time of named stages in milliseconds, counted from when the clock was made.

    A stage entered again adds to its time. What lies between stages, such as waiting for another
    image, is no stage. Several threads may use one clock after one another.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done within as the stage `name`."""
        start = time.perf_counter()
        yield
        self.add(name, (time.perf_counter() - start) * 1e3)

    def add(self, name: str, milliseconds: float) -> None:
        """Add a time that was taken elsewhere."""
        self._stages[name] = self._stages.get(name, 0.0) + milliseconds

    @property
    def total(self) -> float:
        """Milliseconds since the clock was made."""
        return (time.perf_counter() - self._start) * 1e3

    def sum(self, *names: str) -> float:
        """Milliseconds of these stages together. Raises KeyError for one that was not timed."""
        return sum(self._stages[name] for name in names)

    def stages(self) -> dict[str, float]:
        """Every stage, their sum as `total`, and `latency` since the clock was made; to 1 us."""
        times = {**self._stages, "total": sum(self._stages.values()), "latency": self.total}
        return {name: round(ms, 3) for name, ms in times.items()}
