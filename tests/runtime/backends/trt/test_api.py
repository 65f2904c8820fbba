"""Our TensorRT code against the names and signatures of NVIDIA's own Python bindings.

The bindings need not be able to run anything: NVIDIA's small wheel is enough, beside stand-ins for
the libraries it links to (trt_bindings.py makes both). `make trt-api` gets them for the oldest and
the newest TensorRT that we are for, and runs this with each; without bindings it is skipped, with
the reason.

It proves that every class, method, attribute and enumeration member that the session uses, and
that the builder's stand-in has, exists in that version, and that methods are called with as many
arguments, of such basic types, as its signatures say. A mock of `spec_set` refuses names that were
removed. It proves nothing about what the methods do; fake_tensorrt.py stands for that, and a GPU
decides it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import NonCallableMagicMock

import numpy as np
import pytest
from support import fake_builder, fake_tensorrt
from support.fake_cuda import FakeCuda
from support.session_graph import INPUTS, OUTPUTS, feeds, make_graph
from support.trt_bindings import LIBRARIES, MADE, PACKAGES, VARIABLE, WHY_NOT
from support.trt_engines import fake_box, write_fake_engine

from clipsam.export.trt.progress import BuildProgress, make_monitor
from clipsam.runtime import SessionError
from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.backends.trt.engine_store import Box
from clipsam.runtime.backends.trt.library import DTYPES, tensorrt_logger
from clipsam.runtime.backends.trt.session import TrtSession


def bindings() -> Any:
    """NVIDIA's module: of an installed TensorRT, else what trt_bindings.py made; None without."""
    if (found := _imported("tensorrt")) is not None:
        return found  # before any stand-in has the name of one of its libraries
    folder = os.environ.get(VARIABLE)
    if folder and Path(folder, MADE).is_file():
        for library in sorted(Path(folder, LIBRARIES).glob("*.so*")):
            ctypes.CDLL(str(library))
        sys.path.append(str(Path(folder, PACKAGES)))
    return _imported("tensorrt_bindings")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        return None


def why_not() -> str:
    """Why there are no bindings."""
    if folder := os.environ.get(VARIABLE):
        path = Path(folder, WHY_NOT)
        return path.read_text() if path.is_file() else f"{folder} is not of trt_bindings.py"
    return "`make trt-api` gets them and runs this"


TRT = bindings()
pytestmark = pytest.mark.skipif(TRT is None, reason=f"no TensorRT bindings: {why_not()}")


class Api:
    """The real module with a Runtime that deserialises to mocks of the real classes."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.runtime = NonCallableMagicMock(spec_set=TRT.Runtime)
        self.engine = NonCallableMagicMock(spec_set=TRT.ICudaEngine)
        self.contexts: list[Any] = []
        self.runtime.deserialize_cuda_engine.return_value = self.engine
        specs = {spec.name: spec for spec in (*OUTPUTS, *INPUTS)}
        kinds = {kind: TRT.DataType.__members__[name] for name, kind in DTYPES.items()}
        outputs = {spec.name for spec in OUTPUTS}
        mode = TRT.TensorIOMode
        engine = self.engine
        engine.num_io_tensors = len(specs)
        engine.device_memory_size_v2 = 1 << 12
        engine.get_tensor_name.side_effect = list(specs).__getitem__
        engine.get_tensor_dtype.side_effect = lambda name: kinds[specs[name].dtype]
        engine.get_tensor_location.side_effect = lambda name: TRT.TensorLocation.DEVICE
        engine.get_tensor_mode.side_effect = lambda name: (
            mode.OUTPUT if name in outputs else mode.INPUT
        )
        engine.get_tensor_shape.side_effect = lambda name: TRT.Dims(shape(specs[name], -1))
        engine.get_tensor_profile_shape.side_effect = lambda name, index: [
            TRT.Dims(shape(specs[name], size)) for size in (1, 2, 4)
        ]
        engine.create_execution_context.side_effect = lambda strategy: self.context(specs)

    def context(self, specs: dict[str, TensorSpec]) -> Any:
        context = NonCallableMagicMock(spec_set=TRT.IExecutionContext)
        context.active_optimization_profile = -1 if self.contexts else 0
        context.set_optimization_profile_async.return_value = True
        context.set_input_shape.return_value = True
        context.set_tensor_address.return_value = True
        context.get_tensor_shape.side_effect = lambda name: TRT.Dims(shape(specs[name], 2))
        context.get_max_output_size.return_value = 1024
        context.execute_async_v3.side_effect = lambda stream: self.cuda.enqueue(
            stream, lambda: None
        )
        self.contexts.append(context)
        return context

    def __getattr__(self, name: str) -> Any:
        return (lambda logger: self.runtime) if name == "Runtime" else getattr(TRT, name)


def shape(spec: TensorSpec, free: int) -> tuple[int, ...]:
    return tuple(free if isinstance(size, str) else size for size in spec.shape)


def signatures(kind: Any, method: str) -> list[list[tuple[str, bool]]]:
    """Per overload, (type, whether it can be left out) of every argument, from the docstring."""
    found = []
    for line in (getattr(kind, method).__doc__ or "").splitlines():
        if match := re.match(rf"(?:\d+\. )?{method}\(self: [\w.]+(?:, )?(.*)\) ->", line.strip()):
            arguments = re.split(r", (?=\w+: )", match[1]) if match[1] else []
            types = (argument.split(": ", 1)[1].split(" = ") for argument in arguments)
            found.append([(parts[0], len(parts) > 1) for parts in types])
    return found


def fits(value: object, kind: str) -> bool:
    if kind == "str":
        return isinstance(value, str)
    if kind in ("int", "typing.SupportsInt"):
        return isinstance(value, int)
    return True


def check_calls(mock: Any, kind: Any) -> set[str]:
    """Hold every call of a mock against the real class's signatures; returns the methods."""
    called = set()
    for name, arguments, keywords in mock.method_calls:
        overloads = signatures(kind, name)
        assert overloads, f"{kind.__name__}.{name} has no signature"
        assert not keywords
        assert any(
            sum(not optional for _, optional in overload) <= len(arguments) <= len(overload)
            and all(fits(v, t) for v, (t, _) in zip(arguments, overload, strict=False))
            for overload in overloads
        ), f"{kind.__name__}.{name}{arguments} fits none of {overloads}"
        called.add(name)
    return called


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = make_graph(tmp_path)
    box = Box(TRT.__version__, (8, 9), "Fake GPU")
    write_fake_engine(path, box)
    return path


def test_the_session_uses_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open, run twice (the second time as a graph), in another shape, close."""
    with fake_box() as (cuda, _):
        api = Api(cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", api)
        with TrtSession(path) as session:
            for _ in range(2):
                assert set(session.run(feeds(2, 2))) == {spec.name for spec in OUTPUTS}
            assert isinstance(session, TrtSession)
            assert session.graph_problem is None
            assert cuda.count("cudaGraphLaunch") == 1
        check_calls(api.runtime, TRT.Runtime)
        asked = check_calls(api.engine, TRT.ICudaEngine)
        ran: set[str] = set()
        for context in api.contexts:
            ran |= check_calls(context, TRT.IExecutionContext)
    assert {"create_execution_context", "get_tensor_profile_shape"} <= asked
    assert {"execute_async_v3", "set_device_memory", "set_optimization_profile_async"} <= ran


def test_what_was_removed_is_refused() -> None:
    """The mocks do their work: names of older versions, in every tutorial, do not pass."""
    context = NonCallableMagicMock(spec_set=TRT.IExecutionContext)
    for name in ("execute_async_v2", "set_binding_shape"):
        with pytest.raises(AttributeError):
            getattr(context, name)
    context.set_tensor_address("image")
    with pytest.raises(AssertionError, match=r"set_tensor_address\(.* fits none of"):
        check_calls(context, TRT.IExecutionContext)
    context.reset_mock()
    context.set_tensor_address(0, "image")
    with pytest.raises(AssertionError, match="fits none of"):
        check_calls(context, TRT.IExecutionContext)


def test_the_logger_is_one_of_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subclass is made by the real base class, and takes its severities."""
    with fake_box():
        logger = tensorrt_logger(TRT)
        assert isinstance(logger, TRT.ILogger)
        logger.log(TRT.ILogger.INFO, "nothing to see")
        assert logger.words.last() == "TensorRT gave no reason"
        logger.log(TRT.ILogger.WARNING, "slow")
        logger.log(TRT.ILogger.INTERNAL_ERROR, "it broke")
        assert logger.words.last() == "it broke"


def starts() -> bool:
    try:
        TRT.Runtime(TRT.Logger())
    except TypeError:
        return False
    return True


def test_a_runtime_that_does_not_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library makes no runtime the binding raises TypeError, which becomes ours."""
    if starts():
        pytest.skip("TensorRT starts on this machine")
    message = r"does not start \(TensorRT gave no reason\): check the GPU"
    with fake_box():
        monkeypatch.setitem(sys.modules, "tensorrt", TRT)
        with pytest.raises(SessionError, match=message):
            TrtSession(path)
        monkeypatch.undo()


def test_tensorrts_types_are_numpys() -> None:
    for name, dtype in DTYPES.items():
        kind = TRT.DataType.__members__[name]
        assert np.dtype(TRT.nptype(kind)) == np.dtype(dtype)
        assert kind.name == name


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fake_tensorrt.Runtime, "Runtime"),
        (fake_tensorrt.Engine, "ICudaEngine"),
        (fake_tensorrt.Context, "IExecutionContext"),
        (fake_tensorrt.ILogger, "ILogger"),
        (fake_builder.Builder, "Builder"),
        (fake_builder.Config, "IBuilderConfig"),
        (fake_builder.Profile, "IOptimizationProfile"),
        (fake_builder.Parser, "OnnxParser"),
        (fake_builder.ParserError, "ParserError"),
        (fake_builder.TimingCache, "ITimingCache"),
        (fake_builder.BuilderFlag, "BuilderFlag"),
        (fake_builder.Verbosity, "ProfilingVerbosity"),
        (fake_builder.Format, "LayerInformationFormat"),
    ],
)
def test_the_fakes_have_no_name_that_is_not_real(ours: type, theirs: str) -> None:
    public = {name for name in vars(ours) if not name.startswith("_")}
    assert public
    assert public <= set(dir(getattr(TRT, theirs)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("Severity", "ILogger.Severity"),
        ("DataType", "DataType"),
        ("TensorIOMode", "TensorIOMode"),
        ("TensorLocation", "TensorLocation"),
        ("Strategy", "ExecutionContextAllocationStrategy"),
    ],
)
def test_the_fakes_enumerations_are_real(ours: str, theirs: str) -> None:
    real: Any = TRT
    for part in theirs.split("."):
        real = getattr(real, part)
    for name, member in getattr(fake_tensorrt, ours).__members__.items():
        assert int(real.__members__[name]) == member.value, name


def test_the_monitor_is_one_of_nvidias() -> None:
    progress = BuildProgress("x")
    monitor = make_monitor(TRT, progress)
    assert isinstance(monitor, TRT.IProgressMonitor)
    monitor.phase_start("a", None, 2)
    assert monitor.step_complete("a", 0)
    progress.cancel.set()
    assert not monitor.step_complete("a", 1)
