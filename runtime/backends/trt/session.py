"""TensorRT backend: provider `tensorrt`.

Engines are built on the box (`python export/build_engines.py --engines-only BUNDLE`) and found by
`engine_store`. Memory is taken once, for the largest shapes the engine takes. Every exact set of
shapes gets an execution context and a CUDA graph of its own, since a context must not be changed
once a graph was captured from it. They share their scratch memory: one run happens at a time.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clipsam.runtime.backends.base import Array, DeviceArray, Feeds, Session, TensorSpec
from clipsam.runtime.backends.trt.cuda import (
    Cuda,
    DeviceBuffer,
    Graph,
    PinnedBuffer,
    Resource,
    Stream,
)
from clipsam.runtime.backends.trt.engine_store import Box, has_engine, read_engine, rebuild_hint
from clipsam.runtime.backends.trt.library import (
    deserialize,
    import_tensorrt,
    tensor_specs,
    tensorrt_logger,
)
from clipsam.runtime.core.errors import SessionError
from clipsam.runtime.core.files import digest_onnx
from clipsam.runtime.core.log import get_logger

SHAPES_KEPT = 16  # sets of shapes with a context; the decoder meets up to 16 numbers of prompts

_LOG = get_logger("tensorrt")

Shape = tuple[int, ...]
R = TypeVar("R", bound=Resource)
T = TypeVar("T")


@dataclass(frozen=True)
class _Tensor:
    """An input or output, and its memory on both sides: enough for its largest shape."""

    spec: TensorSpec
    lowest: Shape  # what the engine takes; of inputs only
    highest: Shape
    host: PinnedBuffer
    device: DeviceBuffer


@dataclass
class _Prepared:
    """What is kept of one set of shapes: a context, its outputs' shapes, and its graph."""

    context: Any
    outputs: dict[str, Shape]
    graph: Graph | None = None

    def close(self) -> None:
        graph, self.graph, self.context = self.graph, None, None
        if graph is not None:
            graph.close()


class TrtSession(Session):
    """An engine built for this box, checked, and run on one GPU.

    Attributes:
      sidecar: where the engine came from.
      keeps: outputs can stay on the GPU.
      graph_problem: why runs are not replayed as CUDA graphs (slower, with the same results), or
        None while they are.
    """

    keeps = True

    def __init__(
        self,
        path: Path,
        provider: str = "tensorrt",
        threads: int | None = None,
        *,
        precision: str = "fp32",
        sha256: str | None = None,
        device_id: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self._trt = trt = import_tensorrt()
        self._cuda = cuda = Cuda(device_id)
        self.provider, self.precision, self.device_id = provider, precision, cuda.device
        self._hint = rebuild_hint(path.parent, precision)
        try:
            digest = sha256 or digest_onnx(path)
        except OSError as error:
            raise SessionError(
                f"TensorRT cannot open {path.name} on {provider} ({error.strerror}): build the "
                "bundle again."
            ) from error
        found = read_engine(path.parent, _graph_name(path), precision, digest, _box(trt, cuda))
        self.sidecar = found.sidecar
        self.graph_problem = None if cuda_graphs else "they were not asked for"
        self._words = tensorrt_logger(trt).words
        self._lock = threading.Lock()
        self._closed = False
        self._memory = contextlib.ExitStack()
        self._prepared: OrderedDict[tuple[Shape, ...], _Prepared] = OrderedDict()
        self._runtime: Any = None
        self._engine: Any = None
        try:
            with cuda.selected():
                self._runtime, self._engine = deserialize(
                    trt, found.plan, found.path.name, self._hint
                )
                self._set_up()
        except BaseException:
            with contextlib.suppress(SessionError):
                self.close()
            raise

    @classmethod
    def available(cls, path: Path, precision: str, device_id: int | None = None) -> bool:
        """Whether an engine of this graph and precision is there for this box."""
        box = _box(import_tensorrt(), Cuda(device_id))
        return has_engine(path.parent, _graph_name(path), precision, box)

    def _set_up(self) -> None:
        """Describe the tensors and take all the memory that runs will need."""
        engine = self._engine
        self.inputs, self.outputs = tensor_specs(self._trt, engine, self.sidecar, self._hint)
        self._stream = self._own(Stream(self._cuda))
        self._scratch = self._own(DeviceBuffer(self._cuda, int(engine.device_memory_size_v2)))
        self._tensors: dict[str, _Tensor] = {}
        for name, spec in self.inputs.items():
            lowest = highest = tuple(engine.get_tensor_shape(name))
            if -1 in highest:
                lowest, _, highest = map(tuple, engine.get_tensor_profile_shape(name, 0))
            self._add(spec, lowest, highest, _bytes(spec, highest))
        largest = self._context({name: self._tensors[name].highest for name in self.inputs})
        for name, spec in self.outputs.items():
            size = int(largest.get_max_output_size(name))
            self._require(size >= 0, f"the size of {name} is unknown")
            self._add(spec, (), (), size)

    def _own(self, resource: R) -> R:
        self._memory.callback(resource.close)
        return resource

    def _add(self, spec: TensorSpec, lowest: Shape, highest: Shape, size: int) -> None:
        host = self._own(PinnedBuffer(self._cuda, size))
        device = self._own(DeviceBuffer(self._cuda, size))
        self._tensors[spec.name] = _Tensor(spec, lowest, highest, host, device)

    def _run(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, Array]:
        return self._locked(feeds, wanted, self._download)

    def _keep(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, DeviceArray]:
        return self._locked(feeds, wanted, self._set_aside)

    def _locked(
        self, feeds: Feeds, wanted: Sequence[str], take: Callable[[Mapping[str, Shape]], T]
    ) -> T:
        """Run and `take` the outputs of these shapes, alone."""
        shapes = {name: feeds[name].shape for name in self.inputs}
        with self._lock:
            if self._closed:
                raise SessionError("This session is closed: open it again.")
            for name, shape in shapes.items():
                self._check_range(self._tensors[name], shape)
            key = tuple(shapes.values())
            with self._cuda.selected():
                try:
                    return self._execute(key, shapes, feeds, wanted, take)
                except BaseException:
                    # What is still queued must not meet the buffers of the next run.
                    with contextlib.suppress(SessionError):
                        self._stream.synchronize()
                    with contextlib.suppress(SessionError):
                        self._forget(key)
                    raise

    def _execute(
        self,
        key: tuple[Shape, ...],
        shapes: Mapping[str, Shape],
        feeds: Feeds,
        wanted: Sequence[str],
        take: Callable[[Mapping[str, Shape]], T],
    ) -> T:
        """One run; the shapes fit the engine."""
        prepared = self._prepared.get(key)
        if first := prepared is None:
            prepared = self._prepared[key] = self._prepare(shapes)
        for name, array in feeds.items():
            tensor = self._tensors[name]
            if isinstance(array, DeviceArray):
                self._stream.move(tensor.device, array.handle, _bytes(tensor.spec, array.shape))
                continue
            np.copyto(tensor.host.array(array.shape, tensor.spec.dtype), array)
            self._stream.upload(tensor.device, tensor.host, array.nbytes)
        if prepared.graph is not None:
            prepared.graph.launch(self._stream)
        else:
            self._enqueue(prepared.context)
        results = take({name: prepared.outputs[name] for name in wanted})
        if first:  # TensorRT asks for one run on these shapes before a capture
            self._capture(key, prepared)
        else:
            self._prepared.move_to_end(key)
        return results

    def _download(self, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """The outputs, copied to the host when all that is queued is done."""
        for name, shape in shapes.items():
            tensor = self._tensors[name]
            self._stream.download(tensor.host, tensor.device, _bytes(tensor.spec, shape))
        self._stream.synchronize()
        return {
            name: self._tensors[name].host.array(shape, self._tensors[name].spec.dtype).copy()
            for name, shape in shapes.items()
        }

    def _set_aside(self, shapes: Mapping[str, Shape]) -> dict[str, DeviceArray]:
        """The outputs in buffers of their own, since the next run writes over the engine's."""
        kept = {}
        for name, shape in shapes.items():
            tensor = self._tensors[name]
            size = _bytes(tensor.spec, shape)
            buffer = DeviceBuffer(self._cuda, size)
            fetch = partial(self._fetch, name, buffer, shape)
            array = DeviceArray(tensor.spec.dtype, shape, self.provider, buffer, fetch)
            weakref.finalize(array, self._release, buffer)
            kept[name] = array
            self._stream.move(buffer, tensor.device, size)
        self._stream.synchronize()
        return kept

    def _fetch(self, name: str, buffer: DeviceBuffer, shape: Shape) -> Array:
        tensor = self._tensors[name]
        with self._lock, self._cuda.selected():
            if self._closed:
                raise SessionError("This session is closed: open it again.")
            self._stream.download(tensor.host, buffer, _bytes(tensor.spec, shape))
            self._stream.synchronize()
            found: Array = tensor.host.array(shape, tensor.spec.dtype).copy()
            return found

    def _release(self, buffer: DeviceBuffer) -> None:
        with contextlib.suppress(SessionError), self._cuda.selected():
            buffer.close()

    def _prepare(self, shapes: Mapping[str, Shape]) -> _Prepared:
        """A context for these shapes, with every tensor's address."""
        if len(self._prepared) >= SHAPES_KEPT:
            self._forget(next(iter(self._prepared)))  # the one not used for longest
        context = self._context(shapes)
        outputs = {}
        for name, tensor in self._tensors.items():
            self._require(context.set_tensor_address(name, tensor.device.handle), f"{name} refused")
            if name in self.outputs:
                outputs[name] = shape = tuple(context.get_tensor_shape(name))
                self._require(
                    all(size >= 0 for size in shape)
                    and _bytes(tensor.spec, shape) <= tensor.device.size,
                    f"{name} has the shape {list(shape)}",
                )
        return _Prepared(context, outputs)

    def _context(self, shapes: Mapping[str, Shape]) -> Any:
        """An execution context on the shared scratch memory, with the inputs' shapes."""
        self._words.clear()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        self._require(context is not None, "no execution context")
        context.set_device_memory(self._scratch.handle, self._scratch.size)
        if context.active_optimization_profile != 0:  # chosen already in the first context
            chosen = context.set_optimization_profile_async(0, self._stream.handle)
            self._require(chosen, "no optimization profile")
        for name, shape in shapes.items():
            self._require(context.set_input_shape(name, shape), f"{name} {list(shape)} refused")
        return context

    def _enqueue(self, context: Any) -> None:
        self._words.clear()
        self._require(context.execute_async_v3(self._stream.handle), "execution")

    def _capture(self, key: tuple[Shape, ...], prepared: _Prepared) -> None:
        """Record the run as a graph. Where that fails, runs go on without, and it is said once."""
        if self.graph_problem is not None:
            return
        try:
            prepared.graph = self._stream.capture(lambda: self._enqueue(prepared.context))
        except SessionError as error:
            self.graph_problem = str(error)
            _LOG.warning(
                "%s runs without CUDA graphs, which is slower and gives the same results: %s",
                self.sidecar.graph,
                error,
            )
            self._forget(key)  # whatever state the failure left its context in

    def _forget(self, key: tuple[Shape, ...]) -> None:
        if (prepared := self._prepared.pop(key, None)) is not None:
            prepared.close()

    def _check_range(self, tensor: _Tensor, shape: Shape) -> None:
        bounds = zip(tensor.lowest, shape, tensor.highest, strict=True)
        if not all(low <= size <= high for low, size, high in bounds):
            raise SessionError(
                f"Wrong input: {tensor.spec} was fed {list(shape)}, and the engine was built for "
                f"{list(tensor.lowest)} to {list(tensor.highest)}: stay within."
            )

    def _require(self, succeeded: bool, what: str) -> None:
        """Raise SessionError with TensorRT's own words unless a call succeeded."""
        if not succeeded:
            raise SessionError(
                f"TensorRT failed on {self.provider} ({what}: {self._words.last()}): free some "
                f"memory, or {self._hint}."
            )

    def close(self) -> None:
        """Free the engine and all its memory."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # In reverse: graphs and contexts, then the engine, then the memory they used; each
            # whatever became of the one before.
            with contextlib.ExitStack() as closing:
                try:
                    closing.enter_context(self._cuda.selected())
                except SessionError as error:
                    closing.callback(_raise, error)
                closing.push(self._memory)
                closing.callback(self._drop_engine)
                for key in list(self._prepared):
                    closing.callback(self._forget, key)

    def _drop_engine(self) -> None:
        self._engine = self._runtime = None  # TensorRT frees what is not referred to


def _raise(error: SessionError) -> None:
    raise error


def _graph_name(path: Path) -> str:
    """clip_umci.fp16.onnx -> clip_umci."""
    return path.name.split(".")[0]


def _box(trt: Any, cuda: Cuda) -> Box:
    return Box(trt.__version__, cuda.compute_capability, cuda.gpu_name)


def _bytes(spec: TensorSpec, shape: Shape) -> int:
    return math.prod(shape) * np.dtype(spec.dtype).itemsize
