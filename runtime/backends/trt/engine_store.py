"""Where TensorRT engines lie in a bundle, and whether one may be trusted.

    BUNDLE/engines/sm89-10.13.3.9-fp16-l4/clip_umci.engine
    BUNDLE/engines/sm89-10.13.3.9-fp16-l4/clip_umci.json      its sidecar

The folder is the compute capability, the TensorRT version, the precision and the GPU's name, so
several boxes can share one bundle. An engine runs on a box like the one that built it and nowhere
else. It is refused, in a sentence that names the command that builds it again, unless its sidecar
says that it fits this box and this graph, and its bytes are the sidecar's.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsam.runtime.backends.trt.sidecar import (
    Sidecar,
    SidecarError,
    read_sidecar,
    this_platform,
)
from clipsam.runtime.core.errors import EngineError
from clipsam.runtime.core.files import write_bytes

ENGINES = "engines"
_NAMED = 4  # engines of other boxes that an error names


@dataclass(frozen=True)
class Box:
    """What an engine must fit: this box's TensorRT and GPU.

    Attributes:
      tensorrt: `tensorrt.__version__`.
      compute_capability: (major, minor).
      gpu: the GPU's name. TensorRT promises nothing between two models of one compute capability.
    """

    tensorrt: str
    compute_capability: tuple[int, int]
    gpu: str

    def __str__(self) -> str:
        return f"{self.gpu} {sm(self.compute_capability)}, TensorRT {self.tensorrt}"

    def folder(self, bundle_folder: Path, precision: str) -> Path:
        """Where engines built on this box belong."""
        key = f"{sm(self.compute_capability)}-{self.tensorrt}-{precision}-{slug(self.gpu)}"
        return bundle_folder / ENGINES / key

    def misfit(self, sidecar: Sidecar) -> str | None:
        """Why an engine does not run here ("is for …"), or None where it does."""
        if sidecar.platform != this_platform():
            return f"is for {sidecar.platform}, this is {this_platform()}"
        if sidecar.tensorrt != self.tensorrt:
            return f"is for TensorRT {sidecar.tensorrt}, this is {self.tensorrt}"
        if sidecar.compute_capability != self.compute_capability:
            found, own = sm(sidecar.compute_capability), sm(self.compute_capability)
            return f"is for another GPU, {sidecar.gpu} {found}, this is {own}"
        if sidecar.gpu != self.gpu:
            return f"is for another GPU, {sidecar.gpu}, this is {self.gpu}"
        return None


@dataclass(frozen=True)
class Engine:
    """An engine that was checked: its file, its sidecar and its bytes."""

    path: Path
    sidecar: Sidecar
    plan: bytes


def sm(compute_capability: tuple[int, int]) -> str:
    """(8, 9) -> "sm89"."""
    return "sm{}{}".format(*compute_capability)


def slug(gpu: str) -> str:
    """A GPU's name for a folder: "NVIDIA GeForce RTX 4090" -> "geforce-rtx-4090"."""
    words = re.findall(r"[a-z0-9]+", gpu.lower())
    return "-".join(words[words[:1] == ["nvidia"] :]) or "gpu"


def fingerprint(plan: bytes) -> dict[str, Any]:
    """The fields of a sidecar that say which bytes it vouches for."""
    return {
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "engine_size": len(plan),
    }


def rebuild_hint(bundle_folder: Path, precision: str) -> str:
    """What to do about every engine that cannot be used; a command of clones and wheels alike."""
    return (
        "build it on this box with `python -m clipsam.export.build_engines --engines-only "
        f"{shlex.quote(str(bundle_folder))} --precision {precision}`"
    )


def has_engine(bundle_folder: Path, graph: str, precision: str, box: Box) -> bool:
    """Whether there is an engine for this box, by its name; it may still be damaged."""
    return (box.folder(bundle_folder, precision) / f"{graph}.engine").exists()


def read_engine(
    bundle_folder: Path, graph: str, precision: str, onnx_sha256: str, box: Box
) -> Engine:
    """The engine of `graph` for this box with its bytes, which are those that were checked.

    `onnx_sha256` is the `onnx_digest` of the ONNX file it has to be built from. Raises EngineError.
    """
    path = box.folder(bundle_folder, precision) / f"{graph}.engine"
    if not path.exists():
        raise EngineError(_none_fits(bundle_folder, graph, precision, box))
    return check_engine(bundle_folder, path, graph, precision, onnx_sha256, box)


def check_engine(
    bundle_folder: Path, path: Path, graph: str, precision: str, onnx_sha256: str, box: Box
) -> Engine:
    """The engine at `path`, a file of the bundle's, checked in full; raises EngineError."""
    hint = rebuild_hint(bundle_folder, precision)
    name = path.relative_to(bundle_folder).as_posix()
    try:
        sidecar = read_sidecar(path.with_suffix(".json"))
    except SidecarError as error:
        raise EngineError(f"The sidecar of {name} cannot be used ({error}): {hint}.") from error
    if (sidecar.graph, sidecar.precision) != (graph, precision):
        raise EngineError(
            f"The engine {name} is of {sidecar.graph} in {sidecar.precision}, not of {graph} in "
            f"{precision}: {hint}."
        )
    if misfit := box.misfit(sidecar):
        raise EngineError(f"The engine {name} {misfit}: {hint}.")
    if sidecar.onnx_sha256 != onnx_sha256:
        raise EngineError(
            f"The engine {name} was built from another ONNX file than the bundle's {graph} in "
            f"{precision}: {hint}."
        )
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"The engine {name} cannot be read ({error.strerror}): {hint}."
        ) from error
    if problem := _damage(plan, sidecar):
        raise EngineError(f"The engine {name} {problem}: {hint}.")
    return Engine(path, sidecar, plan)


def write_engine(folder: Path, plan: bytes, sidecar: Sidecar) -> Path:
    """Write an engine and its sidecar into `folder` (see `Box.folder`); returns its path.

    Each appears whole or not at all, the sidecar last: when this is interrupted between the two,
    the old sidecar does not vouch for the new engine, and it is refused. Raises OutputError.
    """
    path = folder / f"{sidecar.graph}.engine"
    write_bytes(path, plan)
    write_bytes(path.with_suffix(".json"), sidecar.to_json().encode())
    return path


def _damage(plan: bytes, sidecar: Sidecar) -> str | None:
    """What shows that these are not the bytes that the sidecar vouches for."""
    if len(plan) != sidecar.engine_size:
        return f"was truncated or altered ({len(plan)} bytes, not {sidecar.engine_size})"
    if hashlib.sha256(plan).hexdigest() != sidecar.engine_sha256:
        return "was altered (its sha256 is not its sidecar's)"
    return None


def _none_fits(bundle_folder: Path, graph: str, precision: str, box: Box) -> str:
    """No engine, and what there is instead."""
    hint = rebuild_hint(bundle_folder, precision)
    found = sorted((bundle_folder / ENGINES).glob(f"*/{graph}.engine"))
    if not found:
        return f"{bundle_folder} has no TensorRT engine of {graph}: {hint}."
    others = [path.parent.name for path in found[:_NAMED]]
    if len(found) > _NAMED:
        others.append(f"{len(found) - _NAMED} more")
    return (
        f"{bundle_folder} has no {precision} engine of {graph} for this box ({box}), only "
        f"{', '.join(others)}: {hint}."
    )
