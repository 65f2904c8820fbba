"""One ONNX file in, one TensorRT engine out, built for the GPU of this machine.

Neither torch nor onnx, and TensorRT alone: one code for TensorRT 10.13 to 11. Precision is in the
graph, and networks are strongly typed, so an fp32 graph gives an fp32 engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clipsam.export.trt.progress import BuildProgress, make_monitor
from clipsam.runtime.backends.trt.cuda import Cuda
from clipsam.runtime.backends.trt.engine_store import ENGINES, Box, slug, sm
from clipsam.runtime.backends.trt.library import deserialize, tensorrt_logger
from clipsam.runtime.backends.trt.sidecar import BuildFlags, Profile
from clipsam.runtime.core.errors import ExportError, OutputError
from clipsam.runtime.core.files import write_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    """An engine that nobody has judged yet.

    Attributes:
      plan: its bytes.
      layers: what TensorRT made of the graph, layer by layer, as JSON text.
    """

    plan: bytes
    layers: str


def timing_cache_path(bundle_folder: Path, box: Box) -> Path:
    """Where the measured times of kernels are kept, beside the engines: one file for a model of GPU
    and a TensorRT, since they hold for no other."""
    key = f"{sm(box.compute_capability)}-{box.tensorrt}-{slug(box.gpu)}"
    return bundle_folder / ENGINES / f"{key}.timing-cache"


def build_engine(
    trt: Any,
    cuda: Cuda,
    onnx: Path,
    profiles: Mapping[str, Profile],
    flags: BuildFlags,
    timing_cache: Path,
) -> Built:
    """Build an engine of the file `onnx`, whose weights may lie beside it.

    `trt` is the module; `profiles` are of every input with a free axis. Takes minutes for large
    graphs and shows how far it is; Ctrl-C ends it within a step, and what was measured until then
    is kept in `timing_cache`. Raises ExportError with TensorRT's words, naming the node where the
    graph cannot be read.
    """
    progress = BuildProgress(onnx.stem)

    def work() -> Built:
        with cuda.selected():  # which device is current is a matter of the thread
            return _build(trt, onnx, profiles, flags, timing_cache, progress)

    with progress:
        return _interruptible(work, progress.cancel)


def _interruptible(work: Callable[[], T], cancel: threading.Event) -> T:
    """Run `work` in another thread, so that this one hears Ctrl-C while a library computes.

    An exception must not pass through TensorRT's own frames: the event asks it to stop instead.
    Nothing of `work` goes on when this returns or raises. (A ThreadPoolExecutor does not know of a
    thread whose start was interrupted, and waits for none.)
    """
    begun, done = threading.Event(), threading.Event()
    outcome: Future[T] = Future()

    def run() -> None:
        begun.set()
        try:
            if not cancel.is_set():
                outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            done.set()

    try:
        threading.Thread(target=run, name="tensorrt").start()
        done.wait()
    except BaseException:
        cancel.set()
        if begun.is_set():  # else it will find itself cancelled
            done.wait()
        raise
    return outcome.result()


def _build(
    trt: Any,
    onnx: Path,
    profiles: Mapping[str, Profile],
    flags: BuildFlags,
    timing_cache: Path,
    progress: BuildProgress,
) -> Built:
    logger = tensorrt_logger(trt)  # TensorRT keeps the first of a process
    logger.words.clear()
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # a factory that returned nothing
        raise ExportError(
            f"TensorRT {trt.__version__} does not start ({logger.words.last()}): check the GPU and "
            "its driver with nvidia-smi."
        ) from error
    # The flag is 1 in TensorRT 10 and 0 in 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise ExportError(
            f"TensorRT {trt.__version__} cannot read {onnx.name}: "
            f"{_parser_errors(parser, logger)}; "
            "build the bundle again with another --opset or --attention, or use a newer TensorRT."
        )
    _allow_several_kernels(trt, network)
    config = _configure(trt, builder, profiles, flags)
    monitor = make_monitor(trt, progress)
    config.progress_monitor = monitor
    cache = _load_timing_cache(config, timing_cache)
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        _save_timing_cache(cache, timing_cache)
    if progress.cancel.is_set():
        raise ExportError(f"The build of {onnx.name} was interrupted: start it again.")
    if plan is None:
        raise ExportError(
            f"TensorRT {trt.__version__} cannot build an engine of {onnx.name} "
            f"({logger.words.last()}): close other programs on this GPU, raise --workspace-gb, or "
            "use another --precision."
        )
    data = bytes(plan)
    del plan, config, parser, network, builder  # gigabytes, before the engine is loaded
    return Built(data, _layers(trt, data, onnx))


def _allow_several_kernels(trt: Any, network: Any) -> None:
    """Let TensorRT compute an attention node step by step where it has no kernel for the whole.

    Unless told so it fails to build then. Before 10.14 it has no such layers.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the binding returns the base class
            layer.attention.decomposable = True


def _configure(trt: Any, builder: Any, profiles: Mapping[str, Profile], flags: BuildFlags) -> Any:
    """The builder's configuration; raises ExportError where this TensorRT lacks what is asked."""
    config = builder.create_builder_config()
    config.builder_optimization_level = flags.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if flags.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, flags.workspace)
    if flags.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:  # it is on unless told otherwise, and rounds float32 products to 10 bits
        config.clear_flag(trt.BuilderFlag.TF32)
    if profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(
                f"TensorRT {trt.__version__} refuses the sizes of {', '.join(profiles)}: build the "
                "bundle again."
            )
    return config


def _load_timing_cache(config: Any, path: Path) -> Any:
    """The cache in use: that of `path` if TensorRT takes it, else an empty one."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):  # another GPU's, or damaged
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _save_timing_cache(cache: Any, path: Path) -> None:
    """A build is not lost because its times are."""
    memory = cache.serialize()
    if memory is None:
        return
    try:
        write_bytes(path, bytes(memory))
    except OutputError:
        return


def _layers(trt: Any, plan: bytes, onnx: Path) -> str:
    hint = "build it again"
    runtime, engine = deserialize(trt, plan, onnx.stem, hint)
    inspector = engine.create_engine_inspector()
    text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    del inspector, engine, runtime  # in this order: each uses the next
    return text


def _parser_errors(parser: Any, logger: Any) -> str:
    """Every node that was refused, by name; TensorRT's last words where it names none."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"the node {error.node_name()} ({error.node_operator()})"
        reason = " ".join(error.desc().split()).rstrip(".")
        found.append(f"{where}: {reason}" if error.node_name() else reason)
    return "; ".join(found[:3])[:600] or str(logger.words.last())
