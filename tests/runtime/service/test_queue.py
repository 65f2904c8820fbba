"""The queue: bounded, shared, and nothing is waited for longer than was asked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.service import multipart, png, serving, until
from support.toy_bundle import bright_square, plain_part

from clipsam.runtime.backends.base import SessionWrapper
from clipsam.runtime.core.errors import SessionError
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.service import judge as judge_module

PART = png(plain_part())


def test_a_full_queue_says_when_to_come_back_and_loses_nothing(model: ClipSAM, gate: Any) -> None:
    with serving(model, queue=3) as service, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(service.inspect, PART) for _ in range(3)]
        until(lambda: service.judge.taken == 3)
        refused = service.inspect(PART)
        assert (refused.status, refused.json["type"]) == (429, "urn:clipsam:problem:queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        gate.open()
        assert [answer.result().status for answer in accepted] == [200] * 3
        assert service.inspect(PART).status == 200
        assert b"clipsam_queue_taken 0.0" in service.get("/metrics").body


def test_answers_belong_to_their_requests(model: ClipSAM) -> None:
    """Many at once, batched together: every one gets its own."""
    pictures = [png(bright_square(height=100 + 2 * n)) for n in range(12)]
    with serving(model, queue=12, batch=4) as service, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(service.inspect, pictures))
    assert [answer.json["height"] for answer in answers] == [100 + 2 * n for n in range(12)]


def test_who_waits_too_long_is_told_and_not_judged(model: ClipSAM, gate: Any) -> None:
    with serving(model) as service, ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.inspect, PART)
        gate.wait_for(1)
        late = service.inspect(PART, "?timeout_ms=50")
        assert (late.status, late.json["type"]) == (504, "urn:clipsam:problem:too-late")
        gate.open()
        assert first.result().status == 200
        assert service.inspect(PART).status == 200
        assert gate.arrived == 2  # the late one was not decoded


def test_who_leaves_is_not_judged(model: ClipSAM, gate: Any) -> None:
    kind, body = multipart(PART)
    head = f"POST /inspect HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    with serving(model) as service, ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.inspect, PART)
        gate.wait_for(1)
        with service.raw() as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: service.judge.taken == 2)
        until(lambda: service.judge.taken == 1)
        gate.open()
        assert first.result().status == 200
        assert service.inspect(PART).status == 200
        assert gate.arrived == 2


def test_not_ready_while_it_warms_up(model: ClipSAM, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = threading.Event()
    monkeypatch.setattr(model, "warm_up", lambda: warm.wait(60))
    with serving(model, wait=False) as service:
        assert service.get("/v2/health/live").status == 200
        assert service.get("/v2/health/ready").status == 503
        early = service.inspect(PART)
        assert (early.status, early.json["type"]) == (503, "urn:clipsam:problem:not-ready")
        assert early.headers["retry-after"]
        warm.set()
        until(lambda: service.get("/v2/health/ready").status == 200)
        assert service.inspect(PART).status == 200


def test_a_stop_answers_what_was_taken(model: ClipSAM, gate: Any) -> None:
    with serving(model) as service, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(service.inspect, PART) for _ in range(3)]
        until(lambda: service.judge.taken == 3)
        service.server.stop()
        gate.open()
        assert [answer.result().status for answer in accepted] == [200] * 3
    with pytest.raises(ConnectionRefusedError):
        service.get("/v2/health/live")


def test_a_mistake_in_the_line_costs_its_parts_and_no_more(
    model: ClipSAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    refine, wrong = model._refine, [True]

    def once(*args: Any, **options: Any) -> Any:
        if wrong.pop() if wrong else False:
            raise ZeroDivisionError
        return refine(*args, **options)

    monkeypatch.setattr(model, "_refine", once)
    with serving(model) as service:
        failed = service.inspect(PART)
        assert (failed.status, failed.json["type"]) == (500, "urn:clipsam:problem:internal")
        assert service.inspect(PART).status == 200


def test_a_batch_that_the_precision_forbids_is_one_sentence(
    model: ClipSAM, caplog: pytest.LogCaptureFixture
) -> None:
    clip = SessionWrapper(model.sessions["clip_umci"])
    clip.precision = "int8-dynamic"
    mixed = ClipSAM(model.bundle, {**model.sessions, "clip_umci": clip})
    judge = judge_module.Judge(mixed, 4, 2, 1_000_000)
    judge.start()
    until(lambda: judge.state == judge_module.BROKEN)
    judge.close()
    assert judge.error.startswith("batch=2 would let images change each other's results")
    assert caplog.records == []


def test_engines_that_fail_on_anything_end_the_service(
    model: ClipSAM, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm: list[bool] = []

    def broken(*_: Any, **__: Any) -> Any:
        raise SessionError("The GPU fell off the bus: restart the machine.")

    monkeypatch.setattr(model, "warm_up", lambda: warm.append(True))
    monkeypatch.setattr(model, "_refine", broken)
    monkeypatch.setattr(model, "_run_blank", broken)
    with serving(model) as service:
        assert warm
        failed = service.inspect(PART)
        assert (failed.status, failed.json["type"]) == (503, "urn:clipsam:problem:engine")
        until(lambda: service.judge.state == judge_module.BROKEN)
        assert service.get("/v2/health/live").status == 503
        assert "fell off the bus" in service.inspect(PART).json["detail"]
