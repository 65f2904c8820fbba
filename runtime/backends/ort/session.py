"""ONNX Runtime backend: providers `cpu` and `cuda`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipsam.runtime.backends.base import Array, DeviceArray, Feeds, Session, TensorSpec
from clipsam.runtime.backends.ort.memory import trim_malloc
from clipsam.runtime.backends.ort.options import (
    EXECUTION_PROVIDERS,
    session_arguments,
    session_options,
)
from clipsam.runtime.backends.ort.placement import check_placement
from clipsam.runtime.backends.providers import PROVIDERS
from clipsam.runtime.backends.wheels import install_advice
from clipsam.runtime.core.errors import MissingBackendError, ProviderError, SessionError, first_line
from clipsam.runtime.core.stop import stops_held

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OrtSession(Session):
    """A graph opened by onnxruntime on exactly the provider that was asked for."""

    def __init__(
        self,
        path: Path,
        provider: str,
        threads: int | None = None,
        *,
        precision: str = "fp32",
        sha256: str | None = None,  # the graph itself is what is opened
        device_id: int | None = None,
    ) -> None:
        ort = _import_onnxruntime(provider)
        wanted = EXECUTION_PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            raise ProviderError(
                f"This onnxruntime has no {wanted}: pip uninstall onnxruntime, then "
                f"{install_advice(provider)}, or use provider 'cpu'."
            )
        options = session_options(ort, provider, threads)
        try:
            self._session: Any = ort.InferenceSession(
                str(path), options, **session_arguments(provider, precision, device_id)
            )
            # Names of another encoding than UTF-8 fail here.
            self.inputs = {spec.name: spec for spec in map(_spec, self._session.get_inputs())}
            self.outputs = {spec.name: spec for spec in map(_spec, self._session.get_outputs())}
        except Exception as error:
            if device_id is not None and "device id" in str(error).lower().replace("_", " "):
                raise ProviderError(
                    f"onnxruntime finds no GPU {device_id} ({first_line(error)}): choose one that "
                    "nvidia-smi lists."
                ) from error
            raise SessionError(
                f"onnxruntime cannot open {path.name} on {provider} ({first_line(error)}): "
                "build the bundle again, or use another provider."
            ) from error
        # onnxruntime-gpu lists CUDA on a machine without a GPU and runs on the CPU: ask it.
        if wanted not in self._session.get_providers():
            self._session = None
            raise ProviderError(
                f"{provider} was asked for but onnxruntime would run {path.name} on the CPU: check "
                "the GPU, its driver and the CUDA libraries, or use provider 'cpu'."
            )
        if provider == "cpu":
            trim_malloc()
        else:
            check_placement(self._session, provider, path.name)
        self.provider, self.precision, self._ort = provider, precision, ort
        self.device_id = None if provider == "cpu" else device_id or 0
        # By binding, which the device also needs to copy outputs straight into the caller's
        # arrays. On the CPU onnxruntime's own way copies no more.
        self.keeps = provider != "cpu"

    def _run(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, Array]:
        session, fed = self._opened(), _contiguous(feeds)
        try:
            if self.keeps:
                return self._run_bound(session, fed, wanted)
            outputs = session.run(list(wanted), fed)
        except Exception as error:
            raise self._failure(error) from error
        found = dict(zip(wanted, outputs, strict=True))
        self._check_outputs(feeds, found)
        return found

    def _keep(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, DeviceArray]:
        session, fed = self._opened(), _contiguous(feeds)
        try:
            binding = session.io_binding()
            self._bind_inputs(binding, fed)
            for name in wanted:
                binding.bind_output(name, self.provider, self.device_id or 0)
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            values = binding.get_outputs()
        except Exception as error:
            raise self._failure(error) from error
        return {
            name: DeviceArray(
                self.outputs[name].dtype, tuple(value.shape()), self.provider, value, value.numpy
            )
            for name, value in zip(wanted, values, strict=True)
        }

    def _opened(self) -> Any:
        if self._session is None:
            raise SessionError("This session is closed: open it again.")
        return self._session

    def _failure(self, error: Exception) -> SessionError:
        return SessionError(
            f"onnxruntime failed on {self.provider} ({first_line(error)}): free some memory, "
            "or build the bundle again."
        )

    def _bind_inputs(self, binding: Any, feeds: Feeds) -> None:
        for name, array in feeds.items():
            if isinstance(array, DeviceArray):
                binding.bind_ortvalue_input(name, array.handle)
            else:
                binding.bind_cpu_input(name, array)

    def _check_outputs(self, feeds: Feeds, found: Mapping[str, Array]) -> None:
        """Refuse outputs of other shapes than declared, which onnxruntime returns all the same."""
        axes: dict[str, int] = {}
        for name, spec in self.inputs.items():
            spec.problem(feeds[name], axes)  # learns the axes
        for name, array in found.items():
            spec = self.outputs[name]
            # A graph need not declare every shape; one of no axes is how that reads here.
            if spec.shape and spec.problem(array, axes):
                raise SessionError(
                    f"The graph returned {name} {list(np.shape(array))} where it declares "
                    f"{spec}: build the bundle again."
                )

    def _run_bound(self, session: Any, feeds: Feeds, wanted: Sequence[str]) -> dict[str, Array]:
        """Run with arrays made beforehand for the outputs whose shapes the inputs' axes give."""
        binding = session.io_binding()
        self._bind_inputs(binding, feeds)
        axes: dict[int | str, int] = {}
        for name, array in feeds.items():
            axes.update(zip(self.inputs[name].shape, array.shape, strict=True))
        axes.pop("?", None)  # axes without a name are not one axis
        results: dict[str, Array] = {}
        for name in wanted:
            spec = self.outputs[name]
            shape = [size if isinstance(size, int) else axes.get(size, -1) for size in spec.shape]
            if -1 in shape:
                binding.bind_output(name)
            else:
                results[name] = made = np.empty(shape, spec.dtype)
                binding.bind_output(name, "cpu", 0, made.dtype, shape, made.ctypes.data)
        session.run_with_iobinding(binding)
        if len(results) < len(wanted):
            ours = zip(wanted, binding.copy_outputs_to_cpu(), strict=True)
            results.update({name: array for name, array in ours if name not in results})
        return {name: results[name] for name in wanted}

    def close(self) -> None:
        """Free the graph and the memory of its runs."""
        if self._session is not None and self.provider == "cpu":
            self._session = None
            trim_malloc()
        self._session = None


def _contiguous(feeds: Feeds) -> dict[str, Any]:
    return {
        name: array if isinstance(array, DeviceArray) else np.ascontiguousarray(array)
        for name, array in feeds.items()
    }


def _import_onnxruntime(provider: str) -> Any:
    try:
        with stops_held():
            import onnxruntime
    except ImportError as error:
        extra = PROVIDERS[provider].extra
        ours = f"pip install 'clipsam[{extra}]'"
        install = ours if provider == "cpu" else install_advice(provider)
        raise MissingBackendError(f"Provider {provider!r} needs onnxruntime: {install}.") from error
    onnxruntime.disable_telemetry_events()  # those that Windows itself collects
    if provider == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        # CUDA and cuDNN may come from NVIDIA's wheels, which the loader does not search. What it
        # prints of those that it does not find, the error of opening a graph says better.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    return onnxruntime


def _spec(argument: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int | str) else "?" for axis in argument.shape)
    return TensorSpec(argument.name, _DTYPES.get(argument.type, argument.type), shape)
