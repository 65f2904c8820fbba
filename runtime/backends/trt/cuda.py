"""The little of CUDA that an engine needs: a stream, buffers on both sides, copies, graphs.

ctypes on NVIDIA's runtime library, so that the box needs neither PyTorch nor PyCUDA. Every return
code is checked; a failure is a SessionError with CUDA's own words. Whoever makes a Stream, Buffer
or Graph closes it; closing twice is fine.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from clipsam.runtime.backends.base import Array
from clipsam.runtime.backends.wheels import install_advice
from clipsam.runtime.core.errors import MissingBackendError, ProviderError, SessionError

# Of Linux, as all of this backend. The newest first; each with the folders of NVIDIA's wheels that
# may hold it. The toolkit's folder, JetPack's too, is for where the system's loader does not know
# of it.
_LIBRARIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("libcudart.so.13", ("cu13/lib", "cuda_runtime/lib")),
    ("libcudart.so.12", ("cuda_runtime/lib",)),
)
_TOOLKIT = "/usr/local/cuda/lib64"

_HANDLE = POINTER(c_void_p)
_INT = POINTER(c_int)
# What is called, with its arguments; all but the first return a code, 0 for success.
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cudaGetErrorString": (c_int,),
    "cudaGetLastError": (),
    "cudaGetDeviceCount": (_INT,),
    "cudaGetDevice": (_INT,),
    "cudaSetDevice": (c_int,),
    "cudaDeviceGetAttribute": (_INT, c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaDriverGetVersion": (_INT,),
    "cudaMalloc": (_HANDLE, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (_HANDLE, c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, _HANDLE),
    # Not cudaGraphInstantiate: its arguments changed between CUDA 11 and 12.
    "cudaGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
}
# Values of CUDA's enumerations, the same in every version.
_OUT_OF_MEMORY, _OLD_DRIVER = 2, 35
_MAJOR, _MINOR = 75, 76
_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3
_NON_BLOCKING = 1  # a stream that does not wait for the default stream
_THREAD_LOCAL = 1  # a capture that another thread's allocations do not break


class Cuda:
    """The CUDA runtime on device `device` (None: the one that is current in this thread).

    Raises MissingBackendError when the library is not installed and ProviderError when there is
    no usable GPU, or none of this number.

    Attributes:
      device: its index.
      compute_capability: (major, minor), e.g. (8, 9).
      gpu_name: e.g. "NVIDIA L4".
      driver_version: the newest CUDA version the driver supports, e.g. "13.0".
    """

    def __init__(self, device: int | None = None) -> None:
        self._library = _usable_library()
        self.device = self._int("cudaGetDevice") if device is None else device
        if not self.device < (count := self._int("cudaGetDeviceCount")):
            raise ProviderError(
                f"There is no GPU {device}: this machine has {count}, counted from 0; choose one "
                "that nvidia-smi lists."
            )
        self.compute_capability = (
            self._int("cudaDeviceGetAttribute", _MAJOR, self.device),
            self._int("cudaDeviceGetAttribute", _MINOR, self.device),
        )
        # The structure differs between versions, but begins with the name in all of them.
        properties = ctypes.create_string_buffer(1 << 16)
        self.call("cudaGetDeviceProperties", properties, self.device)
        self.gpu_name = properties.value.decode(errors="replace")
        version = self._int("cudaDriverGetVersion")
        self.driver_version = f"{version // 1000}.{version % 1000 // 10}"

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the runtime; raises SessionError when it fails."""
        code = getattr(self._library, name)(*arguments)
        if code == 0:
            return
        words = _error_words(self._library, code)
        if code == _OUT_OF_MEMORY:
            advice = "close other programs on this GPU, or use an engine of lower precision"
        else:
            advice = "open the engine again; if that does not help, check the GPU with nvidia-smi"
        raise SessionError(f"{name} failed ({words}): {advice}.")

    @contextlib.contextmanager
    def selected(self) -> Iterator[None]:
        """Make this device current in this thread, which may use another, and restore that."""
        current = self._int("cudaGetDevice")
        if current == self.device:
            yield
            return
        self.call("cudaSetDevice", self.device)
        try:
            yield
        finally:
            self.call("cudaSetDevice", current)

    def allocate(self, name: str, *arguments: object) -> int:
        """Call a function that returns a handle through its first argument."""
        handle = c_void_p()
        self.call(name, byref(handle), *arguments)
        return handle.value or 0

    def _int(self, name: str, *arguments: object) -> int:
        value = c_int()
        self.call(name, byref(value), *arguments)
        return value.value


class Resource:
    """A handle of CUDA and the function that gives it back."""

    def __init__(self, cuda: Cuda, handle: int, release: str) -> None:
        self._cuda, self._handle, self._release = cuda, handle, release

    @property
    def handle(self) -> int:
        """The address or handle, as a number."""
        if not self._handle:
            raise SessionError("CUDA memory was used after it was freed: open the engine again.")
        return self._handle

    def close(self) -> None:
        """Give it back to CUDA; raises SessionError when CUDA refuses."""
        handle, self._handle = self._handle, 0  # whatever comes of it: never twice
        if handle:
            self._cuda.call(self._release, handle)


class DeviceBuffer(Resource):
    """`size` bytes of the device's memory."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = max(size, 1)  # an allocation of nothing has no address
        super().__init__(cuda, cuda.allocate("cudaMalloc", self.size), "cudaFree")


class PinnedBuffer(Resource):
    """`size` bytes of host memory that the device copies from and to by itself."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self.size = max(size, 1)
        super().__init__(cuda, cuda.allocate("cudaHostAlloc", self.size, 0), "cudaFreeHost")

    def array(self, shape: tuple[int, ...], dtype: str) -> Array:
        """The beginning of the buffer as an array; not to be kept beyond `close`."""
        memory: Any = (ctypes.c_byte * self.size).from_address(self.handle)
        array: Array = np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)
        return array


class Graph(Resource):
    """Recorded work that is launched as a whole."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        super().__init__(cuda, handle, "cudaGraphExecDestroy")

    def launch(self, stream: Stream) -> None:
        """Queue the work on `stream`."""
        self._cuda.call("cudaGraphLaunch", self.handle, stream.handle)


class Stream(Resource):
    """A queue of work on the device, apart from the default one."""

    def __init__(self, cuda: Cuda) -> None:
        handle = cuda.allocate("cudaStreamCreateWithFlags", _NON_BLOCKING)
        super().__init__(cuda, handle, "cudaStreamDestroy")

    def upload(self, target: DeviceBuffer, source: PinnedBuffer, size: int) -> None:
        """Queue a copy of the first `size` bytes to the device."""
        self._copy(target, source, size, _TO_DEVICE)

    def download(self, target: PinnedBuffer, source: DeviceBuffer, size: int) -> None:
        """Queue a copy of the first `size` bytes to the host."""
        self._copy(target, source, size, _TO_HOST)

    def move(self, target: DeviceBuffer, source: DeviceBuffer, size: int) -> None:
        """Queue a copy of the first `size` bytes within the device."""
        self._copy(target, source, size, _ON_DEVICE)

    def _copy(
        self,
        target: DeviceBuffer | PinnedBuffer,
        source: DeviceBuffer | PinnedBuffer,
        size: int,
        kind: int,
    ) -> None:
        if size > min(target.size, source.size):  # would overwrite what lies behind the buffer
            raise SessionError(
                f"A copy of {size} bytes does not fit its buffers ({target.size} and "
                f"{source.size}): build the engine again."
            )
        self._cuda.call("cudaMemcpyAsync", target.handle, source.handle, size, kind, self.handle)

    def synchronize(self) -> None:
        """Wait for everything queued; raises SessionError when any of it failed."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` queues on this stream, without running it."""
        self._cuda.call("cudaStreamBeginCapture", self.handle, _THREAD_LOCAL)
        recorded = c_void_p()
        try:
            try:
                work()
            except BaseException:
                # The stream must leave its recording all the same; expected to fail, too.
                with contextlib.suppress(SessionError):
                    self._cuda.call("cudaStreamEndCapture", self.handle, byref(recorded))
                raise
            self._cuda.call("cudaStreamEndCapture", self.handle, byref(recorded))
            handle = self._cuda.allocate("cudaGraphInstantiateWithFlags", recorded, 0)
        except BaseException:
            with contextlib.suppress(SessionError):
                self._destroy(recorded)
            raise
        graph = Graph(self._cuda, handle)
        try:
            self._destroy(recorded)
        except BaseException:
            with contextlib.suppress(SessionError):
                graph.close()
            raise
        return graph

    def _destroy(self, recorded: c_void_p) -> None:
        if recorded:
            self._cuda.call("cudaGraphDestroy", recorded)


def load_libraries() -> Iterator[Any]:
    """Every CUDA runtime library that can be loaded, the newest first."""
    spec = importlib.util.find_spec("nvidia")  # the wheels' namespace package
    wheels = list(spec.submodule_search_locations or ()) if spec else []
    for soname, folders in _LIBRARIES:
        paths = (str(Path(root, folder, soname)) for root in wheels for folder in folders)
        # The system's, or one that is loaded already, comes first.
        for name in (soname, *paths, str(Path(_TOOLKIT, soname))):
            with contextlib.suppress(OSError):
                yield ctypes.CDLL(name)


def _usable_library() -> Any:
    """The newest library that finds a GPU; an older one may suit an older driver."""
    reason = None
    for library in load_libraries():
        try:
            for name, arguments in _FUNCTIONS.items():
                function = getattr(library, name)
                function.argtypes = arguments
                function.restype = c_int
        except AttributeError:
            continue  # of another age
        library.cudaGetErrorString.restype = c_char_p
        count = c_int()
        code = library.cudaGetDeviceCount(byref(count))
        if code == 0 and count.value > 0:
            return library
        reason = reason or (_error_words(library, code) if code else "no device")
        if code not in (0, _OLD_DRIVER):
            break
    if reason is None:
        raise MissingBackendError(
            f"No CUDA runtime library was found ({' or '.join(name for name, _ in _LIBRARIES)}): "
            f"{install_advice('tensorrt')}."
        )
    raise ProviderError(
        f"There is no NVIDIA GPU to run on ({reason}): check it and its driver with nvidia-smi, or "
        "use provider 'cpu'."
    )


def _error_words(library: Any, code: int) -> str:
    # Clear it: otherwise the next CUDA call of another library here would report this error.
    library.cudaGetLastError()
    return str(library.cudaGetErrorString(code).decode(errors="replace"))
