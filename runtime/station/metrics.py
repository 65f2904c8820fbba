"""A station's health as metrics of Prometheus: as a file, or on a port of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clipsam.runtime.core.errors import OptionError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.core.result import VERDICTS


class HealthCollector(Collector):
    """Turns what `Health.snapshot` gives into metrics whenever it is asked."""

    def __init__(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Every metric."""
        health = self._snapshot()
        parts = CounterMetricFamily("clipsam_parts", "Parts by verdict.", labels=["verdict"])
        events = CounterMetricFamily("clipsam_events", "What else is counted.", labels=["event"])
        for name, count in health["parts"].items():
            (parts if name in VERDICTS else events).add_metric([name], count)
        reasons = CounterMetricFamily(
            "clipsam_not_judged", "Parts not judged, by reason.", labels=["reason"]
        )
        for name, count in health["reasons"].items():
            reasons.add_metric([name], count)
        latency = GaugeMetricFamily(
            "clipsam_latency_seconds",
            "Of the last 1000 parts, by stage.",
            labels=["stage", "quantile"],
        )
        for stage, values in health["latency_ms"].items():
            for name, ms in values.items():
                latency.add_metric([stage, f"0.{name[1:]}"], ms / 1e3)
        recent = GaugeMetricFamily(
            "clipsam_recent_share", "Of the last 1000 parts, the share that were so.", labels=["of"]
        )
        for name, value in health["recent"].items():
            if name != "parts" and value is not None:
                recent.add_metric([name], value)
        source = GaugeMetricFamily("clipsam_source", "Figures of the source.", labels=["figure"])
        for name, value in health["source"].items():
            source.add_metric([name], value)
        alarms = GaugeMetricFamily("clipsam_alarm", "1 for an alarm that is on.", labels=["kind"])
        for kind in health["alarms"]:
            alarms.add_metric([kind], 1)
        yield from (parts, events, reasons, latency, recent, source, alarms)
        alive = GaugeMetricFamily("clipsam_alive", "1 while parts that are under way get done.")
        alive.add_metric([], float(health["alive"]))
        under_way = GaugeMetricFamily("clipsam_under_way", "Parts that are being judged.")
        under_way.add_metric([], health["under_way"])
        yield from (alive, under_way)
        if health["drift"] is not None and health["drift"]["distance"] is not None:
            drift = GaugeMetricFamily(
                "clipsam_drift_distance",
                "Kolmogorov-Smirnov distance of recent scores and the calibration's.",
            )
            drift.add_metric([], health["drift"]["distance"])
            yield drift


class Exposition:
    """Metrics of one station."""

    def __init__(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._server: WSGIServer | None = None
        self._registry.register(HealthCollector(snapshot))

    def serve(self, port: int) -> None:
        """Answer `GET /metrics` on 127.0.0.1 from a thread, until `close`. Raises OptionError."""
        try:
            self._server, _ = start_http_server(port, "127.0.0.1", self._registry)
        except OSError as error:
            raise OptionError(
                f"Port {port} cannot be used ({error.strerror}): give another --metrics-port."
            ) from error

    def close(self) -> None:
        """Answer no more, and free the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def write(self, path: Path) -> None:
        """Write the text format, whole or not at all. Raises OutputError."""
        write_bytes(path, generate_latest(self._registry))
