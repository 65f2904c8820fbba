"""A line on stderr that counts. The box has no tqdm: the runtime needs NumPy and OpenCV alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from clipsam.runtime.folder import Counts


def counted(what: str) -> Callable[[int, int], None]:
    """A function that shows how many of how many `what` are done; quiet when nobody watches."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{done}/{total} {what} ", end=end, file=sys.stderr, flush=True)

    return show


def counting() -> Callable[[int, int, Counts], None]:
    """A function that shows how many of how many are done, and for how long the rest will take;
    quiet when nobody watches or all is one image."""
    start = time.monotonic()

    def show(done: int, total: int, counts: Counts) -> None:
        if total < 2 or not sys.stderr.isatty():
            return
        now = max(1, done - counts.skipped)  # what was done before took no time
        left = (time.monotonic() - start) / now * (total - done)
        line = f"\r{done}/{total}  {counts.anomalous} anomalous  {left:.0f} s left "
        print(line, end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
