"""A Ray cluster to work on: one of this machine alone, or one that is there.

Of Ray's own accord nothing is sent anywhere: usage statistics are off, and so is the dashboard.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from clipsam.runtime.core.errors import SessionError
from clipsam.runtime.core.log import get_logger

# Ray asks for it when a cluster is started, and its worker processes inherit it.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Bytes of shared memory: pictures do not go through it, only the numbers of shards do.
STORE = 128 << 20


@contextmanager
def cluster(address: str | None, cpus: int | None = None) -> Iterator[Any]:
    """The module `ray`, connected: to the cluster at `address`, or to one of this machine's `cpus`
    that ends with the block. Who is connected already stays so.

    Raises ImportError, and SessionError where no cluster answers.
    """
    if address is None:  # then its own cluster listens on this machine's loopback alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    with _own_signals():
        import ray
        import ray.data

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if not get_logger().isEnabledFor(logging.INFO):
            stack.enter_context(_own_output())
        if address is None:
            # Ray's sockets lie in it, whose names may not be long; it would leave its logs behind.
            folder = tempfile.TemporaryDirectory(
                prefix="clipsam-",
                dir="/tmp" if Path("/tmp").is_dir() else None,
                ignore_cleanup_errors=True,
            )
            quiet |= {
                "address": "local",  # not what RAY_ADDRESS says
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": STORE,
                "_temp_dir": stack.enter_context(folder),
                "_node_ip_address": "127.0.0.1",
            }
        else:
            quiet["address"] = address
        stack.callback(ray.shutdown)
        try:
            with _own_signals():
                ray.init(**quiet)
        except Exception as error:  # Ray raises just that where a process did not start in time
            reason = " ".join(str(error).split()).rstrip(".")
            where = f"No Ray cluster answers at {address}" if address else "Ray does not start here"
            raise SessionError(
                f"{where} ({reason}): "
                + (
                    "start one with `ray start`, or leave --address out."
                    if address
                    else "start again when the machine is less busy, and see whether memory and "
                    "/tmp have room."
                )
            ) from error
        yield ray


@contextmanager
def _own_output() -> Iterator[None]:
    """Keep what a command prints its own: Ray writes advice for its developers there."""
    kept = os.dup(2)
    with (
        os.fdopen(kept, "w", buffering=1, errors="backslashreplace") as ours,
        Path(os.devnull).open("w") as nothing,
        redirect_stdout(nothing),
        redirect_stderr(ours if _is_stderr(sys.stderr) else sys.stderr),
    ):
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)


def _is_stderr(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):  # a notebook's, or a test's
        return False


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what a command does when it is told to stop, for which Ray has ideas of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
