"""What a station tells about itself: times, alarms, drift, Prometheus and systemd."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from clipsam.runtime.core.errors import OptionError, OutputError
from clipsam.runtime.station.drift import Drift
from clipsam.runtime.station.health import Health
from clipsam.runtime.station.housekeeping import Housekeeping
from clipsam.runtime.station.metrics import Exposition
from clipsam.runtime.station.notify import notify, watchdog_seconds
from clipsam.runtime.station.part import Part, unrecorded
from clipsam.runtime.station.pictures import Keep
from clipsam.runtime.station.store import Store

RANDOM = np.random.default_rng(0)


def part(verdict: str = "good", **values: object) -> Part:
    return unrecorded("a.png", "object", **{"verdict": verdict, **values})


def normal(count: int, mean: float = 0.1, spread: float = 0.01) -> list[float]:
    return [float(score) for score in RANDOM.normal(mean, spread, count)]


def test_counts_shares_and_percentiles_are_of_what_was_judged() -> None:
    health = Health(about={"bundle": "b"})
    for n in range(100):
        health.taken()
        health.judged(part(timings={"rough": float(n + 1), "total": 2.0 * (n + 1)}, refined=n < 25))
    health.judged(part("anomalous", late=True))
    health.judged(part("not_judged", reasons=("unreadable",)))
    told = health.snapshot({"dropped": 3})
    assert told["parts"] == {"good": 100, "anomalous": 1, "not_judged": 1}
    assert told["reasons"] == {"unreadable": 1}
    assert told["latency_ms"]["rough"] == {"p50": 50.5, "p99": 99.01}
    assert told["recent"]["sam"] == pytest.approx(25 / 102, abs=1e-4)
    assert told["recent"]["late"] == pytest.approx(1 / 102, abs=1e-4)
    assert (told["under_way"], told["source"], told["bundle"]) == (0, {"dropped": 3}, "b")
    json.dumps(told)


def test_an_alarm_that_nobody_can_read_is_raised_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    health = Health()
    told: list[str] = []
    health.on_alarm = lambda kind, message: told.append(kind)
    with os.fdopen(writer, "w", buffering=1) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        health.alarm("disk", "It is full.")
        with suppress(OSError):
            stderr.close()
    assert (list(health.alarms), told) == (["disk"], ["disk"])


def test_an_alarm_is_told_once_when_it_comes_and_once_when_it_goes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[tuple[str, str]] = []
    health = Health()
    health.on_alarm = lambda kind, message: told.append((kind, message))
    health.alarm("disk", None)
    for number in (1, 2, 3):
        health.alarm("disk", f"{number} MB free")
    assert health.snapshot()["alarms"]["disk"]["message"] == "3 MB free"
    health.alarm("disk", None)
    health.alarm("disk", None)
    assert told == [("disk", "1 MB free"), ("disk_over", "")]
    assert capsys.readouterr().err == "alarm: disk: 1 MB free\nover: disk\n"


def test_a_station_that_gets_nothing_done_is_not_alive() -> None:
    health = Health()
    assert health.alive
    health.taken()
    assert health.alive
    health._stalled = 0.0
    assert not health.alive
    health.judged(part())
    assert health.alive  # waiting for parts is no stall


def test_drift_is_said_when_scores_move_and_not_before() -> None:
    drift = Drift(normal(200), limit=0.2)
    assert [m for m in map(drift.add, normal(3000)) if m is not None] == []
    said = [m for m in map(drift.add, normal(300, mean=0.13)) if m is not None]
    assert len(said) == 1
    assert "from 0.1 to 0.1" in said[0]
    assert drift.to_dict()["alarm"]
    assert [m for m in map(drift.add, normal(600)) if m is not None] == [""]


def test_defects_are_no_drift() -> None:
    drift = Drift(normal(200), limit=0.2)
    scores = [s for pair in zip(normal(500), normal(500, mean=0.7), strict=True) for s in pair]
    assert [m for m in map(drift.add, scores) if m is not None] == []


def test_drift_wants_enough_scores_on_both_sides() -> None:
    assert not any(map(Drift(normal(40), 1.0).add, normal(1000, mean=0.9)))
    few = Drift(normal(200), 1.0)
    assert not any(map(few.add, normal(49, mean=0.9)))
    assert few.to_dict()["distance"] is None


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    drift = Drift(normal(150), limit=1.0)
    recent = normal(200, mean=0.103)
    for score in recent:
        drift.add(score)
    told = drift.to_dict()
    right = stats.ks_2samp(drift._reference, recent, method="asymp")
    assert told["distance"] == pytest.approx(right.statistic)
    assert told["chance"] == pytest.approx(right.pvalue, rel=0.3)


def metrics(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def busy() -> Health:
    drift = Drift(normal(200), limit=0.2)
    health = Health(drift)
    for score in normal(60):
        health.judged(part(score=score, timings={"total": 20.0}))
    health.judged(part("not_judged", reasons=("unreadable",)))
    health.count("duplicates", 2)
    health.alarm("camera", "gone")
    return health


def test_prometheus_reads_the_file_that_is_written(tmp_path: Path) -> None:
    health = busy()
    Exposition(lambda: health.snapshot({"dropped": 4})).write(tmp_path / "m.prom")
    found = metrics((tmp_path / "m.prom").read_text())
    assert found["clipsam_parts_total", "good"] == 60
    assert found["clipsam_events_total", "duplicates"] == 2
    assert found["clipsam_not_judged_total", "unreadable"] == 1
    assert found["clipsam_latency_seconds", "0.99", "total"] == 0.02
    assert found["clipsam_alarm", "camera"] == 1
    assert found["clipsam_source", "dropped"] == 4
    assert found["clipsam_alive",] == 1
    assert 0 < found["clipsam_drift_distance",] < 0.3
    with pytest.raises(OutputError, match="could not be written"):
        Exposition(health.snapshot).write(tmp_path / "m.prom/m.prom")


def test_a_port_answers_on_this_machine_alone() -> None:
    health = busy()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match="another --metrics-port"):
            Exposition(health.snapshot).serve(port)
    exposition = Exposition(health.snapshot)
    exposition.serve(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        assert metrics(reply.read().decode())["clipsam_parts_total", "good"] == 60
    exposition.close()
    with socket.create_server(("127.0.0.1", port)):
        pass  # another station may have it
    ours = Path("/proc/net/tcp")
    if ours.exists():
        assert f" 0100007F:{port:04X} " in ours.read_text()
        assert f" 00000000:{port:04X} " not in ours.read_text()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("this system has no Unix sockets")
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify"))
    channel.settimeout(20)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return channel


def test_systemd_is_told(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with systemd:
        assert notify("READY=1", "STATUS=well")
        assert systemd.recv(100) == b"READY=1\nSTATUS=well"
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    assert not notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("30000000", None, 30.0), ("30000000", "1", None), ("", None, None), ("x", None, None)],
)
def test_the_watchdogs_time_is_read(
    usec: str, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    assert watchdog_seconds() == seconds


def test_the_watchdog_hears_from_a_station_that_lives_and_from_no_other(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    health = Health()
    with (
        systemd,
        Store(tmp_path / "line.db", create=True) as store,
        Housekeeping(health, store, Keep(), health.snapshot),
    ):
        assert systemd.recv(100) == b"WATCHDOG=1"
        health.taken()
        health._stalled = 0.0
        time.sleep(0.5)  # for a beat that was under way
        systemd.setblocking(False)
        told = iter(lambda: systemd.recv(100), b"")
        with pytest.raises(BlockingIOError):
            list(told)
        time.sleep(0.5)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


def test_the_files_are_written_and_old_parts_go(tmp_path: Path) -> None:
    health, told = busy(), tmp_path / "health.json"
    with Store(tmp_path / "line.db", create=True) as store:
        number = store.take("a.png", "object", taken_at="2020-01-01T00:00:00.000Z")
        store.judge(number, verdict="good")
        store.file(number, None)
        house = Housekeeping(
            health, store, Keep(retain=30), health.snapshot, health_file=told,
            metrics_file=tmp_path / "m.prom",
        )  # fmt: skip
        with house:
            assert json.loads(told.read_text())["parts"]["good"] == 60
            gone = threading.Event()
            for _ in range(100):
                if store.get(number) is None:
                    gone.set()
                    break
                time.sleep(0.1)
        assert gone.is_set()
        told.unlink()
        told.mkdir()
        house.tell()
        assert "could not be written" in health.alarms["health"][1]
