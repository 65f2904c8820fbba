"""Verdicts into the registers of a PLC by Modbus TCP. Needs pymodbus.

PLC program that triggers: its counter of parts | clipsam watch bundles/tiny 0 --on-line
    --store line.db --calibration C | python examples/answers_modbus.py --host PLC

Holding registers, written together in one request, so that none is read beside an older other:

    0  part      the serial number of the trigger (the PLC's own counter), modulo 65536
    1  verdict   1 good, 2 anomalous, 3 not judged; 0 there is none
    2  beat      counts up every second while this program lives

A part may pass only when register 0 is the PLC's counter AND register 1 is 1 AND register 2 has
moved within the last seconds (`may_pass` is that rule). Anything else is a reject: no answer, a
late one, a program or a wire that is dead. The registers are cleared at the start and at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Iterable, Sequence

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

CODES = {"good": 1, "anomalous": 2, "not_judged": 3}


def may_pass(registers: Sequence[int], counter: int, beat_before: int) -> bool:
    """What the PLC decides for its part `counter`; `beat_before` was read some seconds ago."""
    part, verdict, beat = registers
    return part == counter % 65536 and verdict == CODES["good"] and beat != beat_before


class Registers:
    """The three registers; a wire that is dead is tried again with the next value."""

    def __init__(self, host: str, port: int, address: int = 0) -> None:
        self._client = ModbusTcpClient(host, port=port, timeout=1, retries=0)
        self._address, self._lock = address, threading.Lock()
        self._values = [0, 0, 0]
        self._end = threading.Event()
        self.set(0, 0)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def set(self, part: int, verdict: int) -> bool:
        """Write all three; whether the PLC has them."""
        with self._lock:
            self._values[:2] = part % 65536, verdict
            return self._write()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self.set(0, 0)
        self._client.close()

    def _beat(self) -> None:
        while not self._end.wait(1.0):
            with self._lock:
                self._values[2] = (self._values[2] + 1) % 65536
                self._write()

    def _write(self) -> bool:
        try:
            if not self._client.connected and not self._client.connect():
                return False
            return not self._client.write_registers(self._address, self._values).isError()
        except ModbusException:
            self._client.close()
            return False


def answer(lines: Iterable[str], registers: Registers) -> None:
    """Write the verdict of every line; a part without a number cannot pass."""
    for line in lines:
        part = json.loads(line)
        serial = part["serial"] or ""
        if serial.isdecimal():
            registers.set(int(serial), CODES.get(part["verdict"], 0))
        else:
            registers.set(0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what `clipsam watch` prints into a PLC.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=502)
    parser.add_argument("--address", type=int, default=0, help="of the first register")
    args = parser.parse_args()
    registers = Registers(args.host, args.port, args.address)
    try:
        answer(sys.stdin, registers)
    finally:
        registers.close()


if __name__ == "__main__":
    main()
