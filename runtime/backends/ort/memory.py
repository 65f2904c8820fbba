"""What the C library's malloc keeps of onnxruntime's memory, given back."""

from __future__ import annotations

import ctypes
import sys


def trim_malloc() -> None:
    """Return malloc's free pages to the system, where it is glibc's.

    Reading a graph leaves as much free memory as the graph is large: malloc kept it because
    blocks of that size were freed before.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
