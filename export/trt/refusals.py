"""What the gate refused on a box, so that the next build does not spend an hour on it again.

    engines/sm89-10.13.3.9-fp16-l4/sam_encoder.refused.json

A refusal holds for as long as nothing that led to it has changed: box, driver, ONNX files, build
flags, what was recorded and how far an engine may be from it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipsam.export.parity.golden import RECORDED
from clipsam.export.parity.tolerances import TOLERANCES
from clipsam.export.trt.gate import GateError
from clipsam.runtime.backends.trt.cuda import Cuda
from clipsam.runtime.backends.trt.engine_store import Box
from clipsam.runtime.backends.trt.sidecar import BuildFlags, this_platform
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.core.errors import OutputError
from clipsam.runtime.core.files import onnx_digest, write_bytes

SUFFIX = ".refused.json"
TOGETHER = "together"  # each graph passed alone, and the three of them did not
SCHEMA = 1


@dataclass(frozen=True)
class Refusals:
    """The refusals of one box for one bundle, built with the same flags."""

    bundle: Bundle
    box: Box
    driver: str
    flags: BuildFlags

    @classmethod
    def of(cls, bundle: Bundle, box: Box, cuda: Cuda, flags: BuildFlags) -> Refusals:
        """Those of this machine."""
        return cls(bundle, box, cuda.driver_version, flags)

    def check(self, graph: str | None, precision: str) -> None:
        """Raise the GateError of an earlier build, if there was one. `graph` None: of the whole."""
        try:
            found = json.loads(self._path(graph, precision).read_bytes())
            if found["why"] != self._why(graph, precision):
                return
            message, safer = str(found["message"]), found["safer"]
        except (OSError, ValueError, TypeError, KeyError):
            return  # none, or nothing that can be relied on: build and judge again
        raise GateError(
            f"An earlier build was refused, and only --retry makes another: {message}",
            graph,
            precision,
            safer if isinstance(safer, str) else None,
        )

    def keep(self, error: GateError, precision: str) -> None:
        """Remember a refusal of `precision`; a disk that takes none is no reason to hide it."""
        entry = {
            "message": str(error),
            "safer": error.safer,
            "why": self._why(error.graph, precision),
        }
        text = json.dumps(entry, indent=1, ensure_ascii=False) + "\n"
        with contextlib.suppress(OutputError):
            write_bytes(self._path(error.graph, precision), text.encode())

    def forget(self, graph: str | None, precision: str) -> None:
        """An engine passed: what was said of it before is over."""
        with contextlib.suppress(OSError):
            self._path(graph, precision).unlink(missing_ok=True)

    def _path(self, graph: str | None, precision: str) -> Path:
        shared = self.flags.hardware_compatibility != "none"
        folder = self.box.folder(self.bundle.folder, precision, shared)
        return folder / f"{graph or TOGETHER}{SUFFIX}"

    def _why(self, graph: str | None, precision: str) -> Mapping[str, Any]:
        """Everything that decided; as JSON gives it back."""
        files = self.bundle.manifest.files
        entries = {
            name: self.bundle.graph_entry(name, precision)
            for name in ((graph,) if graph is not None else GRAPHS)
        }
        why = {
            "schema": SCHEMA,
            "platform": this_platform(),
            "tensorrt": self.box.tensorrt,
            "gpu": self.box.gpu,
            "compute_capability": self.box.compute_capability,
            "driver": self.driver,
            "flags": asdict(self.flags),
            "onnx": {name: onnx_digest(files, entry.file) for name, entry in entries.items()},
            "recorded": files.get(RECORDED),
            "tolerance": asdict(TOLERANCES[precision]),
        }
        plain: Mapping[str, Any] = json.loads(json.dumps(why))
        return plain
