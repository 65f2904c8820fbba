"""Answers to machines, over real brokers and servers on the loopback: a missing one is a reject."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.interrupts import attend_interrupts
from support.line_station import bad_part, good_part, write_part
from support.toy_bundle import build_toy_bundle

from clipsam.runtime.station.answers import answer_of
from clipsam.runtime.station.part import unrecorded

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
LONG = 60.0  # seconds, until a test gives up


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def line(serial: str | None, verdict: str) -> str:
    return json.dumps(answer_of(unrecorded("a.png", "object", serial=serial, verdict=verdict)))


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def broker() -> Iterator[int]:
    """The port of a mosquitto that listens on the loopback alone."""
    pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no mosquitto: apt-get install mosquitto")
    port = free_port()
    process = subprocess.Popen(
        [program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert wait_for(lambda: listens(port))
    yield port
    process.terminate()
    process.wait()


def publisher(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / "answers_mqtt.py"), "--port", str(port)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1)


def test_an_mqtt_gate_opens_for_good_parts_in_time_and_for_nothing_else(broker: int) -> None:
    gate = example("answers_mqtt").Gate("127.0.0.1", broker, "line1")
    process = publisher(broker)
    assert process.stdin is not None
    assert wait_for(lambda: gate._online)
    for serial, verdict in (("S1", "good"), ("S2", "anomalous"), ("S3", "not_judged")):
        process.stdin.write(line(serial, verdict) + "\n")
    assert gate.passes("S1", LONG)
    assert not gate.passes("S2", LONG)
    assert not gate.passes("S3", LONG)
    assert not gate.passes("S1", 0.2)  # once
    assert not gate.passes("S4", 0.2)  # no answer
    process.stdin.write("no json\n" + line(None, "good") + "\n" + line("S5", "good") + "\n")
    assert gate.passes("S5", LONG)
    process.stdin.write(line("S6", "good") + "\n")
    assert wait_for(lambda: "S6" in gate._answers)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    assert wait_for(lambda: not gate._online)  # the broker says so
    assert not gate.passes("S6", 0.2)  # from a station that is dead
    gate.close()


def test_an_mqtt_gate_stays_shut_when_the_broker_dies(broker: int) -> None:
    gate = example("answers_mqtt").Gate("127.0.0.1", broker, "line1")
    process = publisher(broker)
    assert process.stdin is not None
    assert wait_for(lambda: gate._online)
    process.stdin.write(line("S1", "good") + "\n")
    assert wait_for(lambda: "S1" in gate._answers)
    gate._lost()  # what paho calls when the connection is gone
    assert not gate.passes("S1", 0.2)
    process.stdin.close()
    assert process.wait(LONG) == 0
    gate.close()


def test_mqtt_from_watch_to_gate(broker: int, tmp_path: Path) -> None:
    toy = build_toy_bundle(tmp_path / "bundle")
    gate = example("answers_mqtt").Gate("127.0.0.1", broker, "line1")
    command = (
        f"{sys.executable} -m clipsam.runtime.cli watch {toy} - --uncalibrated --threads 1 "
        f"--store {tmp_path}/line.db | {sys.executable} {EXAMPLES}/answers_mqtt.py --port {broker}"
    )
    process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdin is not None
    assert wait_for(lambda: gate._online)
    good = write_part(tmp_path, "good.png", good_part())
    bad = write_part(tmp_path, "bad.png", bad_part())
    process.stdin.write(f"{good}\tS1\n{bad}\tS2\n{tmp_path}/none.png\tS3\n")
    process.stdin.flush()
    assert gate.passes("S1", LONG)
    assert not gate.passes("S2", LONG)
    assert not gate.passes("S3", LONG)
    process.stdin.close()
    assert process.wait(LONG) == 0
    gate.close()


class Plc:
    """A Modbus server on the loopback."""

    def __init__(self) -> None:
        from pymodbus.client import ModbusTcpClient

        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert wait_for(lambda: listens(self.port))
        self._client = ModbusTcpClient("127.0.0.1", port=self.port)
        assert self._client.connect()

    def registers(self) -> list[int]:
        return list(self._client.read_holding_registers(0, count=3).registers)

    def close(self) -> None:
        self._client.close()
        asyncio.run_coroutine_threadsafe(self._server.shutdown(), self._loop).result(LONG)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        device = SimDevice(1, [SimData(0, count=10, values=7, datatype=DataType.REGISTERS)])
        self._server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await self._server.serve_forever()


@pytest.fixture
def plc() -> Iterator[Plc]:
    pytest.importorskip("pymodbus", reason="pymodbus is not installed")
    server = Plc()
    yield server
    server.close()


def test_a_plc_lets_good_parts_pass_and_nothing_else(plc: Plc) -> None:
    module = example("answers_modbus")
    assert plc.registers() == [7, 7, 7]
    registers = module.Registers("127.0.0.1", plc.port)
    assert plc.registers()[:2] == [0, 0]  # what was there before is no answer
    beat = plc.registers()[2]
    assert wait_for(lambda: plc.registers()[2] != beat)

    def passes(counter: int) -> bool:
        return bool(module.may_pass(plc.registers(), counter, beat))

    assert not passes(70001)
    module.answer([line("70001", "good")], registers)
    assert passes(70001)
    assert not passes(70002)  # its answer has not come
    assert not module.may_pass(plc.registers(), 70001, plc.registers()[2])  # a dead program
    module.answer([line("70002", "anomalous")], registers)
    assert not passes(70002)
    module.answer([line("70003", "not_judged")], registers)
    assert not passes(70003)
    module.answer([line("70004", "good"), line(None, "good")], registers)
    assert not passes(70004)
    module.answer([line("70005", "good")], registers)
    registers.close()
    assert plc.registers()[:2] == [0, 0]


def test_a_wire_that_was_dead_is_used_again(plc: Plc) -> None:
    module = example("answers_modbus")
    port = free_port()
    registers = module.Registers("127.0.0.1", port)
    assert not registers.set(1, 1)
    registers._client.comm_params.port = plc.port
    assert registers.set(2, 1)
    assert plc.registers()[:2] == [2, 1]
    registers.close()


def test_a_callback_of_ones_own(tmp_path: Path) -> None:
    toy = build_toy_bundle(tmp_path / "bundle")
    write_part(tmp_path / "in", "a.png", good_part())
    write_part(tmp_path / "in", "b.png", bad_part())
    process = subprocess.Popen(
        [sys.executable, "-u", EXAMPLES / "answers_callback.py", toy, tmp_path / "in",
         tmp_path / "line.db"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=attend_interrupts,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        told: list[Any] = sorted(process.stdout.readline() for _ in range(2))
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 0
    assert "(a.png): PASS" in told[0]
    assert "(b.png): REJECT" in told[1]
