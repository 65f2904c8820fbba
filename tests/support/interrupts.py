"""Programs that are interrupted in tests."""

from __future__ import annotations

import signal


def attend_interrupts() -> None:
    """For `preexec_fn`: what a shell starts in the background is born ignoring SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
