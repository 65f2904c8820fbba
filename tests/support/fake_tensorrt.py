"""A stand-in for the module `tensorrt`: engines that compute by onnxruntime on fake_cuda's memory.

It keeps the rules that NVIDIA documents and our code has to obey, and fails or raises where they
are broken: a context without memory, addresses or a profile does not run; the first run after a
change of shape cannot be captured; a context is not changed once a graph was captured from it; the
first logger of the process stays. It has no name that the real module lacks (test_api.py). It
shows that our control flow is right by these rules, and nothing of TensorRT's own behaviour.
"""

from __future__ import annotations

import ctypes
import json
import math
import types
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import load_from_string

from support.fake_cuda import FakeCuda

VERSION = "10.13.3.9"
LARGEST = 16  # of a free axis; the smallest is 1
SCRATCH = 4096

Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)
DataType = Enum(
    "DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64"], start=0
)
TensorIOMode = Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"], start=0)
TensorLocation = Enum("TensorLocation", ["DEVICE", "HOST"], start=0)
Strategy = Enum("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"], start=0)
_KINDS = {
    1: ("FLOAT", "float32"),
    2: ("UINT8", "uint8"),
    3: ("INT8", "int8"),
    6: ("INT32", "int32"),
    7: ("INT64", "int64"),
    9: ("BOOL", "bool"),
    10: ("HALF", "float16"),
    16: ("BF16", "bfloat16"),
}


def make_plan(onnx: bytes, version: str = VERSION) -> bytes:
    """What the fake's builder would write: TensorRT's header, then the graph itself."""
    numbers = bytes(int(number) % 256 for number in version.split("."))
    return b"ftrt" + bytes(20) + numbers + onnx


class ILogger:
    """Base class of loggers."""

    Severity = Severity
    ERROR, WARNING = Severity.ERROR, Severity.WARNING

    def __init__(self) -> None:
        self.constructed = True  # a binding's base class must be initialised


class FakeTensorRT(types.ModuleType):
    """The module. Its switches make what real engines may do.

    Attributes:
      refuse_start, refuse_plan, refuse_context, refuse_shape, refuse_profile, refuse_address,
      refuse_run: the call of that name fails; refuse_run "capturing" fails only in captures.
      host_tensor, kind: a tensor's name that is on the host; a data type all tensors claim.
      largest: of free axes, by name, that are not `LARGEST`.
      unknown_size: whether the largest output is unknown.
      contexts, contexts_made: living execution contexts; how many were made.
    """

    def __init__(self, cuda: FakeCuda, version: str = VERSION) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.ILogger, self.DataType = ILogger, DataType
        self.TensorIOMode, self.TensorLocation = TensorIOMode, TensorLocation
        self.ExecutionContextAllocationStrategy = Strategy
        self.Runtime = lambda logger: Runtime(self, logger)
        self.cuda = cuda
        self.refuse_start = self.refuse_plan = self.refuse_context = self.refuse_shape = False
        self.refuse_profile = self.refuse_address = self.unknown_size = False
        self.refuse_run: bool | str = False
        self.host_tensor: str | None = None
        self.kind: DataType | None = None
        self.largest: dict[str, int] = {}
        self.contexts: set[int] = set()
        self.contexts_made = 0
        self.logger: Any = None

    def say(self, text: str, severity: Severity = Severity.ERROR) -> None:
        """Log, as TensorRT does before it returns False or None."""
        self.logger.log(severity, text)


class Runtime:
    """Deserialises plans."""

    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        assert isinstance(logger, ILogger)
        assert logger.constructed
        self._trt = trt
        trt.logger = trt.logger or logger
        if trt.refuse_start:
            trt.say("CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        """The engine, or None."""
        if self._trt.refuse_plan:
            self._trt.say("The engine plan file is generated\non an incompatible device.")
            return None
        return Engine(self._trt, serialized_engine[28:])


class Engine:
    """A deserialised plan."""

    def __init__(self, trt: FakeTensorRT, onnx: bytes) -> None:
        self.trt = trt
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.session = onnxruntime.InferenceSession(onnx, options, ["CPUExecutionProvider"])
        graph = load_from_string(onnx).graph
        self.inputs = {value.name: _axes(value) for value in graph.input}
        # In another order than the graph's: only names count.
        self.outputs = {value.name: _axes(value) for value in reversed(graph.output)}
        self.kinds = {
            value.name: value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]
        }
        self.tensors = {**self.outputs, **self.inputs}
        self.device_memory_size_v2 = SCRATCH

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.tensors)[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.trt.kind or DataType[_KINDS[self.kinds[name]][0]]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name == self.trt.host_tensor else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        assert -1 in self.get_tensor_shape(name)
        return [
            tuple(
                size if isinstance(size, int) else self.trt.largest.get(size, LARGEST) if i else 1
                for size in self.tensors[name]
            )
            for i in range(3)
        ]

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)

    def create_execution_context(self, strategy: Strategy) -> Context | None:
        if self.trt.refuse_context:
            self.trt.say("OutOfMemory (no further information)")
            return None
        assert strategy is Strategy.USER_MANAGED
        return Context(self)


class Inspector:
    """Describes an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        return json.dumps({"Layers": list(self._engine.tensors)})


class Context:
    """What runs an engine on shapes."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.trt = engine, engine.trt
        # The first context of an engine has the first profile, later ones have none.
        self.active_optimization_profile = 0 if not self.trt.contexts_made else -1
        self.trt.contexts_made += 1
        self.trt.contexts.add(id(self))
        self._axes: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._flushed = self._captured = False

    def __del__(self) -> None:
        self.trt.contexts.discard(id(self))

    def _change(self) -> None:
        assert not self._captured, "a context was changed after a graph was captured from it"
        self._flushed = False

    def set_device_memory(self, memory: int, size: int) -> None:
        self._change()
        self._memory = memory, size

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._change()
        assert stream_handle in self.trt.cuda.streams
        if self.trt.refuse_profile:
            return False
        self.active_optimization_profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._change()
        assert self.active_optimization_profile == 0
        wanted = self.engine.inputs[name]
        if self.trt.refuse_shape or len(shape) != len(wanted):
            self.trt.say(f"Static dimension mismatch while setting input shape for {name}.")
            return False
        for size, axis in zip(shape, wanted, strict=True):
            most = self.trt.largest.get(axis, LARGEST) if isinstance(axis, str) else axis
            if not (1 if isinstance(axis, str) else most) <= size <= most:
                self.trt.say(f"Set dimension of {name} is not in the profile.")
                return False
            if isinstance(axis, str):
                self._axes[axis] = size
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._change()
        if self.trt.refuse_address:
            return False
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(
            size if isinstance(size, int) else self._axes.get(size, -1)
            for size in self.engine.tensors[name]
        )

    def get_max_output_size(self, name: str) -> int:
        shape = self.get_tensor_shape(name)
        if self.trt.unknown_size or -1 in shape:
            return -1
        return math.prod(shape) * self._dtype(name).itemsize

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue the run; False and a word where TensorRT would refuse."""
        cuda, trt = self.trt.cuda, self.trt
        capturing = cuda.capturing(stream_handle)
        if trt.refuse_run is True or (trt.refuse_run == "capturing" and capturing):
            if capturing:
                cuda.break_capture(stream_handle)
            trt.say("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (no memory)")
            return False
        if capturing and not self._flushed:
            cuda.break_capture(stream_handle)
            trt.say("operation not permitted when stream is capturing")
            return False
        if set(self._shapes) != set(self.engine.inputs) or self._memory[1] < SCRATCH:
            trt.say("Address or shape is not set")
            return False
        if not cuda.holds("device", *self._memory):
            trt.say("Scratch memory is not memory of the device")
            return False
        try:  # the shapes alone decide whether TensorRT can run them
            self._compute({n: np.zeros(s, self._dtype(n)) for n, s in self._shapes.items()})
        except Exception as error:
            trt.say(str(error))
            return False
        self._flushed = True
        self._captured = self._captured or capturing
        return cuda.enqueue(stream_handle, self._execute)

    def _execute(self) -> None:
        fed = {name: self._view(name).copy() for name in self.engine.inputs}
        for name, array in self._compute(fed).items():
            self._view(name)[...] = array

    def _compute(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = list(self.engine.outputs)
        return dict(zip(names, self.engine.session.run(names, feeds), strict=True))

    def _dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(_KINDS[self.engine.kinds[name]][1])

    def _view(self, name: str) -> NDArray[Any]:
        """A tensor's memory on the "device"."""
        shape, dtype = self.get_tensor_shape(name), self._dtype(name)
        size = math.prod(shape) * dtype.itemsize
        address = self._addresses[name]
        assert self.trt.cuda.holds("device", address, size), f"{name} lies outside its buffer"
        memory = (ctypes.c_ubyte * size).from_address(address)
        found: NDArray[Any] = np.frombuffer(memoryview(memory), dtype).reshape(shape)
        return found


def _axes(value: Any) -> tuple[int | str, ...]:
    return tuple(
        axis.dim_param if axis.HasField("dim_param") else axis.dim_value
        for axis in value.type.tensor_type.shape.dim
    )
