"""The service's figures, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from clipsam.runtime.core.result import Result

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "clipsam_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "clipsam_request_seconds",
            "From a request's head to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._parts = Counter("clipsam_parts", "Parts by verdict.", ["verdict"], registry=registry)
        self._stages = Histogram(
            "clipsam_stage_seconds",
            "What a stage took for a part.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._unrecorded = Counter(
            "clipsam_unrecorded", "Parts that the store could not take.", registry=registry
        )

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A gauge that is asked for whenever metrics are."""
        Gauge(name, help, registry=self._registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def judged(self, result: Result) -> None:
        """Count a part."""
        self._parts.labels(result.verdict).inc()
        for stage, ms in result.timings.items():
            self._stages.labels(stage).observe(ms / 1e3)

    def unrecorded(self) -> None:
        """Count a part that the store could not take."""
        self._unrecorded.inc()

    def text(self) -> bytes:
        """Everything, in the text format."""
        return generate_latest(self._registry)
