"""A stand-in for libcudart: host memory plays the device's, streams are queues.

It is called through C function pointers with prototypes written from NVIDIA's header, so ctypes
marshals every argument as it would for the library. What is queued on a stream runs when the
stream is synchronised and not before, so code that reads its results too early reads rubbish.
It shows that our calls are in order, checked and paired. It shows nothing of a real driver.
"""

# ruff: noqa: N802 - the functions have the names of the library's
from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

_HANDLE, _INT, _SIZE = POINTER(c_void_p), POINTER(c_int), POINTER(c_size_t)
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cudaGetErrorString": (c_void_p, c_int),
    "cudaGetLastError": (c_int,),
    "cudaGetDeviceCount": (c_int, _INT),
    "cudaGetDevice": (c_int, _INT),
    "cudaSetDevice": (c_int, c_int),
    "cudaDeviceGetAttribute": (c_int, _INT, c_int, c_int),
    "cudaGetDeviceProperties": (c_int, c_void_p, c_int),
    "cudaDriverGetVersion": (c_int, _INT),
    "cudaMalloc": (c_int, _HANDLE, c_size_t),
    "cudaFree": (c_int, c_void_p),
    "cudaHostAlloc": (c_int, _HANDLE, c_size_t, c_uint),
    "cudaFreeHost": (c_int, c_void_p),
    "cudaMemcpyAsync": (c_int, c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (c_int, _HANDLE, c_uint),
    "cudaStreamDestroy": (c_int, c_void_p),
    "cudaStreamSynchronize": (c_int, c_void_p),
    "cudaStreamBeginCapture": (c_int, c_void_p, c_int),
    "cudaStreamEndCapture": (c_int, c_void_p, _HANDLE),
    "cudaGraphInstantiateWithFlags": (c_int, _HANDLE, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_int, c_void_p, c_void_p),
    "cudaGraphDestroy": (c_int, c_void_p),
    "cudaGraphExecDestroy": (c_int, c_void_p),
}
INVALID, UNSPECIFIED, NO_DEVICE, CAPTURE_INVALIDATED = 1, 719, 100, 901
_WORDS = {
    1: b"invalid argument",
    2: b"out of memory",
    35: b"CUDA driver version is insufficient for CUDA runtime version",
    100: b"no CUDA-capable device is detected",
    719: b"unspecified launch failure",
    901: b"operation failed due to a previous error during capture",
}
Work = Callable[[], object]


class FakeCuda:
    """The library, as an object with its functions as attributes.

    Attributes:
      failing: function -> code; every call of it fails.
      fail_call: index of the one checked call that fails, counted from 0.
      names: the checked calls so far, in order.
      used: the devices that were current when work was done on one.
      on_wait: called once, by the next thread that waits for a stream.
    """

    def __init__(self, name: str = "Fake GPU", capability: tuple[int, int] = (8, 9)) -> None:
        self.name, self.capability, self.devices, self.driver = name, capability, 2, 13000
        self.failing: dict[str, int] = {}
        self.fail_call: int | None = None
        self.names: list[str] = []
        self.used: set[int] = set()
        self.on_wait: Work | None = None
        self.blocks: dict[str, dict[int, Any]] = {"device": {}, "host": {}}
        self.streams: dict[int, list[Work]] = {}
        self.recorded: dict[int, list[Work]] = {}
        self.executable: dict[int, list[Work]] = {}
        self._capturing: dict[int, list[Work]] = {}
        self._broken: set[int] = set()
        self._handles = itertools.count(0x7000_0000_0000, 64)  # beyond 32 bits, as real ones
        self._here = threading.local()
        self._words = {code: ctypes.create_string_buffer(text) for code, text in _WORDS.items()}
        for function, prototype in PROTOTYPES.items():
            setattr(self, function, CFUNCTYPE(*prototype)(self._checked(function)))

    def _checked(self, name: str) -> Callable[..., int]:
        body = getattr(self, f"_{name}")
        if name in ("cudaGetErrorString", "cudaGetLastError"):
            return body  # type: ignore[no-any-return]

        def call(*arguments: Any) -> int:
            self.names.append(name)
            if not name.startswith(("cudaGetDevice", "cudaSetDevice", "cudaDevice", "cudaDriver")):
                self.used.add(getattr(self._here, "device", 0))
            code = self.failing.get(name, 0)
            if len(self.names) - 1 == self.fail_call:
                code = UNSPECIFIED
            if code and name == "cudaStreamEndCapture":  # a capture ends, whatever comes of it
                self._capturing.pop(arguments[0], None)
            return code or body(*arguments) or 0

        return call

    def held(self) -> dict[str, int]:
        """What was taken and not given back."""
        counts = {kind: len(blocks) for kind, blocks in self.blocks.items()}
        counts |= {"streams": len(self.streams), "recorded": len(self.recorded)}
        counts |= {"graphs": len(self.executable), "capturing": len(self._capturing)}
        return {kind: count for kind, count in counts.items() if count}

    def count(self, name: str) -> int:
        """How often a function was called."""
        return Counter(self.names)[name]

    def enqueue(self, stream: int, work: Work) -> bool:
        """Queue work as a kernel launch does; False in a capture that is broken already."""
        if stream in self._capturing:
            self._capturing[stream].append(work)
            return stream not in self._broken
        self.streams[stream].append(work)
        return True

    def capturing(self, stream: int) -> bool:
        """Whether the stream records instead of running."""
        return stream in self._capturing

    def break_capture(self, stream: int) -> None:
        """Do what must not be done while capturing."""
        self._broken.add(stream)

    def holds(self, kind: str, address: int, size: int) -> bool:
        """Whether `size` bytes from `address` lie within one living block."""
        return any(
            start <= address and address + size <= start + len(block)
            for start, block in self.blocks[kind].items()
        )

    # The functions of the library.

    def _cudaGetErrorString(self, code: int) -> int:
        return ctypes.addressof(self._words[code])

    def _cudaGetLastError(self) -> int:
        return 0

    def _cudaGetDeviceCount(self, count: Any) -> None:
        count[0] = self.devices

    def _cudaGetDevice(self, device: Any) -> None:
        device[0] = getattr(self._here, "device", 0)

    def _cudaSetDevice(self, device: int) -> int:
        self._here.device = device
        return 0 if device < self.devices else INVALID

    def _cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        value[0] = self.capability[{75: 0, 76: 1}[attribute]]

    def _cudaGetDeviceProperties(self, properties: int, device: int) -> None:
        text = self.name.encode() + b"\0"
        ctypes.memmove(properties, text, len(text))

    def _cudaDriverGetVersion(self, version: Any) -> None:
        version[0] = self.driver

    def _allocate(self, kind: str, address: Any, size: int) -> int:
        if not size:
            address[0] = None  # as CUDA does
            return 0
        block = (ctypes.c_ubyte * size)(*[0xA5] * min(size, 64))
        address[0] = ctypes.addressof(block)
        self.blocks[kind][ctypes.addressof(block)] = block
        return 0

    def _cudaMalloc(self, address: Any, size: int) -> int:
        return self._allocate("device", address, size)

    def _cudaHostAlloc(self, address: Any, size: int, flags: int) -> int:
        return self._allocate("host", address, size)

    def _cudaFree(self, address: int) -> int:
        return 0 if self.blocks["device"].pop(address, None) is not None else INVALID

    def _cudaFreeHost(self, address: int) -> int:
        return 0 if self.blocks["host"].pop(address, None) is not None else INVALID

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> int:
        sides = {1: ("device", "host"), 2: ("host", "device"), 3: ("device", "device")}[kind]
        inside = self.holds(sides[0], target, size) and self.holds(sides[1], source, size)
        if stream not in self.streams or not inside:
            return INVALID
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))
        return 0

    def _cudaStreamCreateWithFlags(self, stream: Any, flags: int) -> int:
        stream[0] = handle = next(self._handles)
        self.streams[handle] = []
        return 0 if flags == 1 else INVALID

    def _cudaStreamDestroy(self, stream: int) -> int:
        return 0 if self.streams.pop(stream, None) is not None else INVALID

    def _cudaStreamSynchronize(self, stream: int) -> int:
        if stream not in self.streams or stream in self._capturing:
            return INVALID
        on_wait, self.on_wait = self.on_wait, None
        if on_wait:
            on_wait()
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        return 0

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> int:
        if stream not in self.streams or stream in self._capturing or mode != 1:
            return INVALID
        self._capturing[stream] = []
        return 0

    def _cudaStreamEndCapture(self, stream: int, graph: Any) -> int:
        work = self._capturing.pop(stream, None)
        if work is None:
            return INVALID
        if stream in self._broken:
            self._broken.discard(stream)
            graph[0] = None
            return CAPTURE_INVALIDATED
        graph[0] = handle = next(self._handles)
        self.recorded[handle] = work
        return 0

    def _cudaGraphInstantiateWithFlags(self, executable: Any, graph: int, flags: int) -> int:
        if graph not in self.recorded:
            return INVALID
        executable[0] = handle = next(self._handles)
        self.executable[handle] = list(self.recorded[graph])
        return 0

    def _cudaGraphLaunch(self, executable: int, stream: int) -> int:
        if executable not in self.executable or stream not in self.streams:
            return INVALID
        self.streams[stream].extend(self.executable[executable])
        return 0

    def _cudaGraphDestroy(self, graph: int) -> int:
        return 0 if self.recorded.pop(graph, None) is not None else INVALID

    def _cudaGraphExecDestroy(self, executable: int) -> int:
        return 0 if self.executable.pop(executable, None) is not None else INVALID
