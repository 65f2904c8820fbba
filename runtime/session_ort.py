"""ONNX Runtime backend: providers `cpu` and `cuda`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipsam.runtime.errors import MissingBackendError, ProviderError, SessionError
from clipsam.runtime.session import Array, Session, TensorSpec

_ORT_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_EXTRAS = {"cpu": "ort", "cuda": "ort-gpu"}
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

    def __init__(self, path: Path, provider: str, threads: int | None = None) -> None:
        ort = _import_onnxruntime(provider)
        wanted = _ORT_PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            raise ProviderError(
                f"This onnxruntime has no {wanted}: pip uninstall onnxruntime, then "
                f"pip install 'clipsam[{_EXTRAS[provider]}]', or use provider 'cpu'."
            )
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come back as exceptions: not on stderr, too
        if threads is not None:
            options.intra_op_num_threads = threads
        if provider != "cpu":
            # An operator the device cannot run is an error, not a quiet copy to the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=[wanted])
        except Exception as error:
            raise SessionError(
                f"onnxruntime cannot open {path.name} on {provider} ({_first_line(error)}): "
                "build the bundle again, or use another provider."
            ) from error
        # onnxruntime-gpu lists CUDA on a machine without a GPU and runs on the CPU: ask it.
        if wanted not in self._session.get_providers():
            self._session = None
            raise ProviderError(
                f"{provider} was asked for but onnxruntime would run {path.name} on the CPU: check "
                "the GPU, its driver and the CUDA libraries, or use provider 'cpu'."
            )
        self.provider = provider
        self.inputs = {spec.name: spec for spec in map(_spec, self._session.get_inputs())}
        self.outputs = {spec.name: spec for spec in map(_spec, self._session.get_outputs())}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise SessionError("This session is closed: open it again.")
        contiguous = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            outputs = session.run(list(self.outputs), contiguous)
        except Exception as error:
            raise SessionError(
                f"onnxruntime failed on {self.provider} ({_first_line(error)}): free some memory, "
                "or build the bundle again."
            ) from error
        return dict(zip(self.outputs, outputs, strict=True))

    def close(self) -> None:
        """Free the graph and its memory arena."""
        self._session = None


def _import_onnxruntime(provider: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingBackendError(
            f"Provider {provider!r} needs onnxruntime: pip install 'clipsam[{_EXTRAS[provider]}]'."
        ) from error
    return onnxruntime


def _spec(argument: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int | str) else "?" for axis in argument.shape)
    return TensorSpec(argument.name, _DTYPES.get(argument.type, argument.type), shape)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
