"""One interface to every engine: named arrays in, named arrays out.

A backend is one folder with one class that fills `inputs`, `outputs`, `provider` and `precision`
and implements `_run`, and one entry of `providers.PROVIDERS`. `open_session` imports it when it is
asked for, never before.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import PROVIDERS, can_run, provider_entry
from clipsam.runtime.core.errors import OptionError, ProviderError, SessionError

Array = NDArray[Any]


@dataclass(frozen=True)
class DeviceArray:
    """An output that stayed in its device's memory, to be fed to another session there.

    Freed with the last reference to it; not to be used once the session that made it is closed.

    Attributes:
      handle: the backend's own.
      fetch: copies it to the host.
    """

    dtype: str
    shape: tuple[int, ...]
    provider: str
    handle: Any = field(repr=False)
    fetch: Callable[[], Array] = field(repr=False)


# What an engine may be fed.
Feeds = Mapping[str, "Array | DeviceArray"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype name and shape of a tensor; a string in the shape names a free axis.

    Free axes of one name have one size; those without a name, "?", are independent.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"

    def agrees(self, other: TensorSpec) -> bool:
        """Same name, dtype, rank and fixed sizes; a free axis agrees with anything."""
        return (
            (self.name, self.dtype, len(self.shape)) == (other.name, other.dtype, len(other.shape))
        ) and all(
            a == b or isinstance(a, str) or isinstance(b, str)
            for a, b in zip(self.shape, other.shape, strict=True)
        )

    def problem(self, array: object, axes: dict[str, int]) -> str | None:
        """What keeps `array` from being this tensor, or None; learns the sizes of free axes."""
        if not isinstance(array, np.ndarray | DeviceArray):
            return f"{self} was fed a {type(array).__name__}, not a NumPy array"
        found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
        # A big-endian array has the same dtype name, and engines would read its bytes as they are.
        native = not isinstance(array, np.ndarray) or array.dtype.isnative
        dtype = np.dtype(array.dtype).name
        if dtype != self.dtype or not native or len(array.shape) != len(self.shape):
            return f"{self} was fed {found}"
        for size, wanted in zip(array.shape, self.shape, strict=True):
            if wanted == "?":
                wanted = size
            elif isinstance(wanted, str):
                wanted = axes.setdefault(wanted, size)
            if size != wanted or size == 0:
                return f"{self} was fed {found}"
        return None


class Session(ABC):
    """An opened engine. Thread-safe; usable as a context manager.

    Attributes:
      inputs, outputs: the engine's tensors by name.
      provider: what really runs it, one of `PROVIDERS`.
      precision: of the graph, one of `PRECISIONS`.
      device_id: index of the GPU that runs it, as CUDA counts; None on a CPU.
      keeps: whether `keep` is there: outputs can stay on a device of its own.
    """

    keeps: bool = False
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    provider: str
    precision: str
    device_id: int | None = None

    @classmethod
    def available(cls, path: Path, precision: str, device_id: int | None = None) -> bool:
        """Whether there is something to open for the graph at `path` in this precision."""
        return path.is_file()

    def run(self, feeds: Feeds, wanted: Collection[str] | None = None) -> dict[str, Array]:
        """Run the engine once.

        `feeds` maps every input's name to an array of exactly its dtype and shape; those that
        `keep` of a session of the same provider returned may be among them. `wanted` names
        the outputs to return (None: all of them); the others are not copied to the host. The arrays
        returned belong to the caller. Raises SessionError, naming the tensor, when names, dtypes
        or shapes do not fit, or when the engine fails.
        """
        return self._run(feeds, self._check(feeds, wanted))

    def keep(self, feeds: Feeds, wanted: Collection[str] | None = None) -> dict[str, DeviceArray]:
        """`run`, with what it returns left in the device's memory. Only where `keeps` says so."""
        if not self.keeps:
            raise SessionError(f"Outputs cannot stay on {self.provider!r}: use run.")
        return self._keep(feeds, self._check(feeds, wanted))

    def _check(self, feeds: Feeds, wanted: Collection[str] | None) -> tuple[str, ...]:
        """The outputs wanted, in the engine's order; raises SessionError where a feed is wrong."""
        if set(feeds) != set(self.inputs):
            raise SessionError(
                f"The engine takes {sorted(self.inputs)} and was fed {sorted(feeds)}: feed exactly "
                "its inputs."
            )
        axes: dict[str, int] = {}
        for name, spec in self.inputs.items():
            if problem := spec.problem(feeds[name], axes):
                raise SessionError(f"Wrong input: {problem}.")
            array = feeds[name]
            if isinstance(array, DeviceArray) and array.provider != self.provider:
                raise SessionError(
                    f"Wrong input: {spec} was fed an array in the memory of {array.provider!r}, "
                    f"and runs on {self.provider!r}: fetch it first."
                )
        if wanted is None:
            return tuple(self.outputs)
        if not wanted or not set(wanted) <= set(self.outputs):
            raise SessionError(
                f"The engine returns {sorted(self.outputs)} and was asked for {sorted(wanted)}: "
                "ask for some of its outputs."
            )
        return tuple(name for name in self.outputs if name in wanted)

    @abstractmethod
    def _run(self, feeds: Any, wanted: Sequence[str]) -> dict[str, Array]:
        """Run with feeds that were checked; returns the outputs `wanted`, in the engine's order.

        Where the session `keeps`, arrays of the device may be among the feeds.
        """

    def _keep(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, DeviceArray]:
        """`_run` for a session that `keeps`."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 - a backend that holds nothing need not override it
        """Free what the engine holds; a closed session cannot run."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SessionWrapper(Session):
    """A session that runs another one; override `_run` to see or change what passes through."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.provider, self.precision = inner.provider, inner.precision
        self.device_id = inner.device_id

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        return self.inner.run(feeds, wanted)

    def close(self) -> None:
        """Free what the inner session holds."""
        self.inner.close()


def check_finite(outputs: Mapping[str, Array], *names: str) -> None:
    """Raise SessionError on NaN or infinity, which every comparison would take for a good part."""
    for name in names:
        if not np.isfinite(outputs[name]).all():
            raise SessionError(
                f"The engine returned values of {name} that are not numbers: it overflowed; use "
                "an engine of higher precision (fp32)."
            )


def open_session(
    path: Path,
    provider: str = "cpu",
    threads: int | None = None,
    *,
    precision: str = "fp32",
    sha256: str | None = None,
    device_id: int | None = None,
) -> Session:
    """Open the engine of the graph at `path` (an ONNX file) on `provider`, one of `PROVIDERS`.

    `threads` bounds the CPU threads of one run (None: the backend's default, all cores; a GPU
    ignores it). `precision`, one of `PRECISIONS`, is that of the ONNX file. `sha256` is
    `files.onnx_digest` of it where that is known already; TensorRT checks its engine by it.
    `device_id` is the GPU's index as CUDA counts (None: the one that is current, the first).
    Raises MissingBackendError (naming the extra to install), ProviderError (the provider is
    unknown, the precision is not made for it, there is no such GPU, or another device would run;
    there is no silent fallback), EngineError (no TensorRT engine of this graph fits), another
    SessionError, or OptionError.
    """
    if precision not in PRECISIONS:
        raise SessionError(f"Unknown precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
    backend: Any = backend_of(provider)
    check_made_for(provider, precision, ["fp32"])
    device_id = check_device_id(provider, device_id)
    session: Session = backend(
        path, provider, threads, precision=precision, sha256=sha256, device_id=device_id
    )
    return session


def check_device_id(provider: str, device_id: int | None) -> int | None:
    """`device_id`; raises OptionError unless it can be a GPU's and `provider` runs on one."""
    if device_id is None:
        return None
    if not isinstance(device_id, Integral) or isinstance(device_id, bool) or device_id < 0:
        raise OptionError(
            f"device_id={device_id!r} must be the number of a GPU, 0 for the first, or None."
        )
    if provider == "cpu":
        raise OptionError(
            f"device_id={device_id} chooses a GPU, and provider 'cpu' uses none: leave it out, or "
            "name the provider."
        )
    return int(device_id)


def check_made_for(provider: str, precision: str, there: Iterable[str]) -> None:
    """Raise ProviderError where the provider is unknown or has no operators for the precision.

    `there` are the precisions that could be opened instead.
    """
    provider_entry(provider)
    if precision not in PRECISIONS or can_run(provider, precision):  # unknown: not in the bundle
        return
    only = "' or '".join(p for p in PROVIDERS if can_run(p, precision))
    instead = " or ".join(repr(other) for other in there if can_run(provider, other))
    raise ProviderError(
        f"Precision {precision!r} is for provider '{only}' alone and cannot run on {provider!r}: "
        f"use provider '{only}', or with {provider!r} precision {instead or repr('fp32')}."
    )


def backend_of(provider: str) -> type[Session]:
    """The class that answers for `provider`; raises ProviderError when there is none."""
    entry = provider_entry(provider)
    backend: type[Session] = getattr(importlib.import_module(entry.module), entry.session)
    return backend
