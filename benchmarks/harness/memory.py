"""Memory of this process, and how glibc's malloc holds on to it."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


def peak_mb() -> float:
    """Resident memory at most, in 10^6 bytes (Linux).

    Not `getrusage`: what a child's begins with is its parent's.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def keep_freed_pages() -> None:
    """Have glibc's malloc map nothing and give nothing back (before anything large is allocated).

    By default every large buffer of PyTorch's is mapped and unmapped again, and the kernel clears
    each of its pages anew at every layer: up to a third of eager's time.
    """
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
        if libc.mallopt(option, value) != 1:
            raise RuntimeError("glibc's malloc refused mallopt")
