"""Memory of onnxruntime's sessions on the CPU: one arena for all of a process, given back at close.

By default every session keeps an arena as large as its hungriest run needs, though CLIP and SAM
work on a part one after the other. With one arena between them `tiny` peaks at 314 instead of
356 MB for the eight example images one by one (one thread), and takes no longer. Where CLIP and SAM
run at the same time, as in `clipsam inspect`, it saves nothing (369 to 372 MB either way).
benchmarks/README.md has other figures, and what else was tried.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

# What is free is split wherever more than 1 MiB would be left over (by default 128 MB): sessions
# that run at the same time otherwise take each other's large pieces for small ones. Growing by just
# what is asked for, instead of to the next power of two, takes 2 % longer.
_ARENA = {"max_dead_bytes_per_chunk": 1 << 20}

# y = Identity(x), float32 [1], IR 8, opset 13: a graph to run where only the end of a run matters.
_IDENTITY = (
    b"\x08\x08:7\n\x10\n\x01x\x12\x01y\x22\x08Identity\x12\x01g"
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"B\x04\n\x00\x10\r"
)

_lock = threading.Lock()


def use_shared_arena(ort: Any, options: Any) -> None:
    """Have a session opened with `options` allocate from the process's one arena.

    `ort` is the imported onnxruntime. Other users of onnxruntime in the process are left alone
    unless they ask for shared allocators, too. Weights stay outside, or those of a session that is
    opened later take the room of runs (13 MB with two `tiny`).
    """
    with suppress(Exception):  # without an arena a session works as well
        _arena_session(ort)
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")


def give_back(ort: Any) -> None:
    """Return to the system what the arena and malloc hold and nobody uses.

    Safe while other sessions run; what runs next fetches its memory anew. A build of onnxruntime
    without arenas has none to return.
    """
    with suppress(Exception):  # closing must not fail for it
        session = _arena_session(ort)
        # onnxruntime has no other way to say it than at the end of a run.
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        # Bound to an array outside the arena: an output within it would keep its whole region.
        x, y = np.zeros(1, np.float32), np.empty(1, np.float32)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        session.run_with_iobinding(binding, options)
    trim_malloc()


def trim_malloc() -> None:
    """Return malloc's free pages to the system, where it is glibc's.

    Reading a graph leaves as much free memory as the graph is large: malloc kept it because
    blocks of that size were freed before.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)


def _arena_session(ort: Any) -> Any:
    """The process's session of `_IDENTITY`, the first that uses the arena."""
    with _lock:
        return _make_arena_session(ort)


@cache
def _make_arena_session(ort: Any) -> Any:
    where = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    # Older versions refuse a second: then the program has registered its own, which serves as well.
    with suppress(RuntimeError):
        ort.create_and_register_allocator(where, ort.OrtArenaCfg(_ARENA))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    session = ort.InferenceSession(
        _IDENTITY, options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    # The arena's first region is never given back: let it be made for this small output.
    session.run(None, {"x": np.zeros(1, np.float32)})
    return session
