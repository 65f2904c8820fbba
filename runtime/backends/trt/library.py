"""TensorRT, imported when it is needed, and its words kept for our errors.

One code for TensorRT 10 and 11: nothing here or in `session` uses what either lacks.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections import deque
from functools import lru_cache
from typing import Any

from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.backends.trt.sidecar import Sidecar, version_numbers
from clipsam.runtime.backends.wheels import install_advice
from clipsam.runtime.core.errors import (
    EngineError,
    MissingBackendError,
    ProviderError,
    SessionError,
)
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.core.stop import stops_held

_OLDEST = 10  # strongly typed networks, user-managed memory by size
_LOG = get_logger("tensorrt")

# TensorRT's types by name that NumPy has, too; graphs have no other inputs and outputs.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class Words:
    """The last things TensorRT said, by thread; safe to share between threads.

    TensorRT has one logger in a process, whatever is handed to it later, so all sessions share
    this. What another thread said is given only where this one heard nothing: TensorRT may also
    report from a thread of its own.
    """

    def __init__(self, kept: int = 16) -> None:
        self._said: deque[tuple[int, bool, str]] = deque(maxlen=kept)
        self._lock = threading.Lock()

    def add(self, severity: str, text: str) -> None:
        """Keep an error or a warning; `severity` is TensorRT's name for it."""
        is_error = severity in ("ERROR", "INTERNAL_ERROR")
        if is_error or severity == "WARNING":
            with self._lock:
                self._said.append((threading.get_ident(), is_error, " ".join(text.split())))

    def clear(self) -> None:
        """Forget what this thread heard; before something whose failure is to be explained."""
        with self._lock:
            mine = threading.get_ident()
            kept = [said for said in self._said if said[0] != mine]
            self._said.clear()
            self._said.extend(kept)

    def last(self) -> str:
        """The last errors in one line, else the last warnings; for use inside a sentence."""
        with self._lock:
            said = list(self._said)
        mine = [s for s in said if s[0] == threading.get_ident()] or said
        errors = [text for _, is_error, text in mine if is_error]
        texts = errors or [text for *_, text in mine]
        if not texts:
            return "TensorRT gave no reason"
        return "; ".join(texts[-3:]).rstrip(".")[:600]


def import_tensorrt() -> Any:
    """The module `tensorrt`; raises MissingBackendError when it is absent, broken or too old, and
    ProviderError on Windows."""
    if sys.platform == "win32":  # our half of it, `cuda`, knows Linux's libraries alone
        raise ProviderError(
            "Provider 'tensorrt' is for Linux: on Windows use provider 'cuda' or 'cpu', or WSL 2."
        )
    install = install_advice("tensorrt")
    try:
        with stops_held():
            trt: Any = importlib.import_module("tensorrt")
    except ImportError as error:
        raise MissingBackendError(
            f"Provider 'tensorrt' needs TensorRT ({error}): {install}."
        ) from error
    except (OSError, RuntimeError) as error:  # the wheels load NVIDIA's libraries by hand
        raise MissingBackendError(
            f"TensorRT is installed but cannot be loaded ({error}): {install}."
        ) from error
    if version_numbers(trt.__version__)[0] < _OLDEST:
        raise MissingBackendError(
            f"TensorRT {trt.__version__} is too old, it must be {_OLDEST} or later: {install}."
        )
    return trt


def tensorrt_logger(trt: Any) -> Any:
    """The process's logger, an ILogger whose `words` are `Words`.

    TensorRT keeps the first logger it is given and ignores every later one, so whatever else in
    this process uses TensorRT should be given this one.
    """
    with _LOGGER_LOCK:
        return _make_logger(trt)


_LOGGER_LOCK = threading.Lock()


@lru_cache(maxsize=1)
def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Prints nothing: what matters is raised, the rest goes to `logging`."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # without this, not super(), the binding has no C++ side
            self.words = Words()

        def log(self, severity: Any, msg: str) -> None:
            self.words.add(severity.name, msg)
            _LOG.debug("%s: %s", severity.name, msg)

    return Logger()


def deserialize(trt: Any, plan: bytes, name: str, hint: str) -> tuple[Any, Any]:
    """(runtime, engine) of a plan that was checked; raises EngineError in TensorRT's words.

    `name` is of the file, `hint` what to do.
    """
    logger = tensorrt_logger(trt)
    logger.words.clear()
    try:
        runtime = trt.Runtime(logger)
    except Exception as error:  # a factory that returned nothing is a TypeError
        raise SessionError(
            f"TensorRT {trt.__version__} does not start ({logger.words.last()}): check the GPU and "
            "its driver with nvidia-smi."
        ) from error
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT cannot load {name} ({logger.words.last()}): {hint}.")
    return runtime, engine


def tensor_specs(
    trt: Any, engine: Any, sidecar: Sidecar, hint: str
) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """(inputs, outputs) of an engine as its sidecar has them: in the graph's order, with the names
    of its axes. Raises EngineError unless the engine has the same tensors."""
    found: dict[Any, dict[str, TensorSpec]] = {
        trt.TensorIOMode.INPUT: {},
        trt.TensorIOMode.OUTPUT: {},
    }
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        # A tensor on the host would be one that shapes depend on; no graph of ours has any.
        if kind not in DTYPES or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise EngineError(
                f"The engine's tensor {name} ({kind}) is of a kind that is not supported: {hint}."
            )
        shape = tuple("?" if size == -1 else size for size in engine.get_tensor_shape(name))
        found[engine.get_tensor_mode(name)][name] = TensorSpec(name, DTYPES[kind], shape)
    declared = sidecar.inputs, sidecar.outputs
    for specs, real in zip(declared, found.values(), strict=True):
        if {spec.name for spec in specs} != set(real) or not all(
            spec.agrees(real[spec.name]) for spec in specs
        ):
            raise EngineError(
                f"The engine has the tensors {', '.join(map(str, real.values()))} where its "
                f"sidecar has {', '.join(map(str, specs))}: {hint}."
            )
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in declared)
    return inputs, outputs
