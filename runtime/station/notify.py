"""Tells systemd how a service is doing (`Type=notify`, `WatchdogSec=`), where there is one."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*lines: str) -> bool:
    """Send e.g. `READY=1`, `WATCHDOG=1`, `STATUS=...` to systemd; whether there was one to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):  # in the abstract namespace
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall("\n".join(lines).encode())
        return True
    return False


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear from this process at least; None: not at all."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with suppress(ValueError):
        seconds = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
        return seconds if seconds > 0 else None
    return None
