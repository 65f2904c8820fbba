"""Verdicts over MQTT, and the gate that acts on them. Needs paho-mqtt and a broker.

clipsam watch bundles/tiny IN --store line.db --calibration C | python examples/answers_mqtt.py

Every part is published to TOPIC/parts as it comes from `clipsam watch`; TOPIC/status is "online"
while this program is connected, and the broker itself makes it "offline" when the program dies.

`Gate` is the machine's side. It opens for one thing alone: an answer that names this part, came in
time, and says "good". No answer, a late one, a broken one, a station or a broker that is down: all
read as reject.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

_REMEMBERED = 1000  # answers that came before they were asked for


def publish(lines: Iterable[str], host: str, port: int, topic: str) -> None:
    """Publish every line until there are no more; reconnects by itself."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(100)  # what is older has been rejected already
    client.will_set(f"{topic}/status", "offline", qos=1, retain=True)
    client.on_connect = lambda *_: client.publish(f"{topic}/status", "online", qos=1, retain=True)
    client.connect(host, port, keepalive=5)
    client.loop_start()
    try:
        for line in lines:
            client.publish(f"{topic}/parts", line.strip(), qos=1).wait_for_publish(1.0)
    finally:
        client.publish(f"{topic}/status", "offline", qos=1, retain=True).wait_for_publish(1.0)
        client.disconnect()
        client.loop_stop()


class Gate:
    """The machine's side: whether a part may pass."""

    def __init__(self, host: str, port: int, topic: str) -> None:
        self._topic, self._online = topic, False
        self._answers: OrderedDict[str, str] = OrderedDict()
        self._changed = threading.Condition()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda *_: self._client.subscribe(f"{topic}/#", qos=1)
        self._client.on_disconnect = self._lost
        self._client.on_message = self._heard
        self._client.connect(host, port, keepalive=5)
        self._client.loop_start()

    def passes(self, serial: str, within: float) -> bool:
        """Whether the part of this serial number is good, by an answer within so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: serial in self._answers, within)
            return self._online and self._answers.pop(serial, None) == "good"

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _heard(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        with self._changed:
            if message.topic == f"{self._topic}/status":
                self._online = message.payload == b"online"
            elif message.topic == f"{self._topic}/parts":
                try:
                    answer = json.loads(message.payload)
                    self._answers[str(answer["serial"])] = answer["verdict"]
                except (ValueError, TypeError, KeyError):
                    return  # a broken answer is none
                while len(self._answers) > _REMEMBERED:
                    self._answers.popitem(last=False)
            self._changed.notify_all()

    def _lost(self, *_: object) -> None:
        with self._changed:
            self._online = False


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish what `clipsam watch` prints.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--topic", default="line1")
    args = parser.parse_args()
    publish(sys.stdin, args.host, args.port, args.topic)


if __name__ == "__main__":
    main()
