"""One engine: found valid on this box, or built; opened, and written with its sidecar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipsam.export.parity.profiles import axis_sizes, graph_profiles
from clipsam.export.trt.builder import build_engine, timing_cache_path
from clipsam.runtime.backends.base import Session, open_session
from clipsam.runtime.backends.trt.cuda import Cuda
from clipsam.runtime.backends.trt.engine_store import Box, check_engine, fingerprint, write_engine
from clipsam.runtime.backends.trt.sidecar import BuildFlags, Sidecar
from clipsam.runtime.bundle import Bundle, GraphEntry
from clipsam.runtime.core.errors import EngineError
from clipsam.runtime.core.files import onnx_digest, write_bytes

LAYERS_SUFFIX = ".layers.json"
Say = Callable[[str], object]


@dataclass
class FreshEngine:
    """An engine that is there in its temporary folder alone."""

    sidecar: Sidecar
    path: Path
    layers: str

    def passed(self, **gate: Any) -> FreshEngine:
        """The same, with more that the gate said of it."""
        return replace(self, sidecar=replace(self.sidecar, gate={**self.sidecar.gate, **gate}))


class BoxEngines:
    """The engines of a bundle for this box."""

    def __init__(self, trt: Any, cuda: Cuda, bundle: Bundle, flags: BuildFlags, say: Say) -> None:
        self.trt, self.cuda, self.bundle, self.flags, self.say = trt, cuda, bundle, flags, say
        self.box = Box(trt.__version__, cuda.compute_capability, cuda.gpu_name)

    def holds(self, name: str, entry: GraphEntry) -> bool:
        """Whether a valid engine is there that was built as is asked now."""
        path = self._folder(entry.precision) / f"{name}.engine"
        if not path.exists():
            return False
        digest = self._digest(entry)
        try:
            found = check_engine(self.bundle.folder, path, name, entry.precision, digest, self.box)
        except EngineError as error:
            self.say(str(error))
            return False
        return found.sidecar.flags == self._flags(entry.precision)

    def build(self, name: str, entry: GraphEntry, temporary: Path) -> tuple[Session, FreshEngine]:
        """A fresh engine in `temporary`, opened and not judged."""
        self.say(f"Building {name} in {entry.precision} for {self.box}.")
        profiles = graph_profiles(entry, axis_sizes(self.bundle.manifest))
        built = build_engine(
            self.trt,
            self.cuda,
            self.bundle.folder / entry.file,
            profiles,
            self._flags(entry.precision),
            timing_cache_path(self.bundle.folder, self.box),
        )
        sidecar = Sidecar(
            graph=name,
            precision=entry.precision,
            tensorrt=self.box.tensorrt,
            compute_capability=self.box.compute_capability,
            gpu=self.cuda.gpu_name,
            driver=self.cuda.driver_version,
            onnx_sha256=self._digest(entry),
            **fingerprint(built.plan),
            inputs=entry.inputs,
            outputs=entry.outputs,
            profiles=profiles,
            flags=self._flags(entry.precision),
        )
        path = write_engine(self.box.folder(temporary, entry.precision), built.plan, sidecar)
        made = FreshEngine(sidecar, path, built.layers)
        del built  # gigabytes, which the session reads again
        return self.open(temporary, entry), made

    def open(self, folder: Path, entry: GraphEntry) -> Session:
        """The engine of a graph in the bundle's folder, or in that of fresh ones."""
        return open_session(
            folder / entry.file,
            "tensorrt",
            precision=entry.precision,
            sha256=self._digest(entry),
        )

    def write(self, made: FreshEngine) -> None:
        """Put an engine that passed into the bundle, with its sidecar and layer information."""
        folder = self._folder(made.sidecar.precision)
        path = write_engine(folder, made.path.read_bytes(), made.sidecar)
        write_bytes(path.with_suffix(LAYERS_SUFFIX), made.layers.encode())

    def _flags(self, precision: str) -> BuildFlags:
        return replace(self.flags, tf32=precision == "tf32")

    def _folder(self, precision: str) -> Path:
        return self.box.folder(self.bundle.folder, precision)

    def _digest(self, entry: GraphEntry) -> str:
        return onnx_digest(self.bundle.manifest.files, entry.file)
