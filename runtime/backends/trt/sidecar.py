"""The sidecar: a JSON file beside a TensorRT engine that says where the engine came from.

TensorRT's own file names its version but neither the GPU it was built on nor the ONNX file it was
built from. The sidecar does, and it holds the engine's hash. It guards against mistakes (a file cut
short, copied to the wrong box, left over from an older model), not against an attacker who can
write both files: whoever can write an engine can run code on the box.
"""

from __future__ import annotations

import json
import platform as host
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from clipsam.runtime.backends.base import TensorSpec

SCHEMA = 1

Shape = tuple[int, ...]


class SidecarError(ValueError):
    """A sidecar cannot be read; the message says why in a few words."""


def this_platform() -> str:
    """Operating system and CPU, e.g. "linux-x86_64": engines run on the one they were built on."""
    return f"{host.system()}-{host.machine()}".lower()


def version_numbers(version: str) -> Shape:
    """The numbers of a TensorRT version: "10.13.3.9" -> (10, 13, 3, 9); raises ValueError."""
    if not (found := re.match(r"\d+(\.\d+)*", version)):
        raise ValueError(f"{version!r} is not a version")
    return tuple(map(int, found[0].split(".")))


@dataclass(frozen=True)
class Profile:
    """The shapes of one input that an engine takes: from `min` to `max`, fastest at `opt`."""

    min: Shape
    opt: Shape
    max: Shape


@dataclass(frozen=True)
class BuildFlags:
    """Choices of the build that decide how fast an engine runs.

    Attributes:
      optimization_level: TensorRT's builder optimisation level, 0 to 5.
      workspace: limit of the scratch memory of a layer in bytes; None: all there was.
      tf32: whether fp32 products may have been rounded to TF32.
    """

    optimization_level: int = 3
    workspace: int | None = None
    tf32: bool = False


@dataclass(frozen=True)
class Sidecar:
    """What is known of one engine.

    Attributes:
      graph, precision: which graph, and in which of its precisions.
      tensorrt: version that built it, as `tensorrt.__version__` has it.
      compute_capability, gpu: of the GPU it was built on, and that GPU's name.
      driver: newest CUDA version that the driver then supported, e.g. "13.0".
      onnx_sha256: `core.files.onnx_digest` of the ONNX file it was built from.
      engine_sha256, engine_size: of the engine file; size in bytes.
      inputs, outputs: the tensors in the graph's order, free axes by name.
      profiles: of every input with a free axis.
      flags: how it was built.
      gate: figures of the comparison with the fp32 graph that it passed; for people to read.
      platform: see `this_platform`.
    """

    graph: str
    precision: str
    tensorrt: str
    compute_capability: tuple[int, int]
    gpu: str
    driver: str
    onnx_sha256: str
    engine_sha256: str
    engine_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: Mapping[str, Profile]
    flags: BuildFlags = field(default_factory=BuildFlags)
    gate: Mapping[str, Any] = field(default_factory=dict)
    platform: str = field(default_factory=this_platform)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Sidecar:
        """Inverse of `to_json`; raises SidecarError on anything it does not know."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SidecarError(f"it is not JSON: {error}") from error
        if not isinstance(values, dict) or "schema" not in values:
            raise SidecarError("it is not a mapping with a schema")
        if values["schema"] != SCHEMA:
            raise SidecarError(f"it has schema {values['schema']!r}, not {SCHEMA}")
        values.pop("header", None)  # sidecars had the engine's first bytes, which the hash covers
        try:
            _check_fields(values, cls)
            _check_texts(values)
            values["compute_capability"] = _capability(values["compute_capability"])
            for side in ("inputs", "outputs"):
                values[side] = tuple(map(_tensor, values[side]))
            values["profiles"] = {n: _profile(p) for n, p in values["profiles"].items()}
            _check_fields(values["flags"], BuildFlags)
            values["flags"] = BuildFlags(**values["flags"])
            if not isinstance(values["gate"], dict):
                raise TypeError("gate is not a mapping")
            if type(values["engine_size"]) is not int:
                raise TypeError("engine_size is not a number")
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SidecarError(f"{type(error).__name__}: {error}") from error


def read_sidecar(path: Path) -> Sidecar:
    """Read and check the sidecar at `path`; raises SidecarError."""
    try:
        return Sidecar.from_json(path.read_bytes().decode())
    except OSError as error:
        raise SidecarError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise SidecarError("it is not text") from error


def _check_fields(values: Mapping[str, Any], kind: type[Any]) -> None:
    """Exactly the fields of a dataclass: a sidecar that leaves one out was not written by us."""
    names = {f.name for f in fields(kind)}
    if unknown := sorted(set(values) - names):
        raise ValueError(f"unknown field {unknown[0]}")
    if missing := sorted(names - set(values)):
        raise ValueError(f"no field {missing[0]}")


def _check_texts(values: Mapping[str, Any]) -> None:
    names = ("graph", "precision", "tensorrt", "gpu", "driver", "platform")
    for name in (*names, "onnx_sha256", "engine_sha256"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} is not text")
    version_numbers(values["tensorrt"])


def _capability(value: Any) -> tuple[int, int]:
    major, minor = _shape(value)
    return major, minor


def _shape(value: Any) -> Shape:
    if not isinstance(value, list) or any(type(size) is not int or size < 0 for size in value):
        raise TypeError(f"{value!r} is not a list of sizes")
    return tuple(value)


def _tensor(value: Any) -> TensorSpec:
    _check_fields(value, TensorSpec)
    shape = value["shape"]
    if not isinstance(shape, list) or any(type(size) not in (int, str) for size in shape):
        raise TypeError(f"{shape!r} is not a shape")
    if not isinstance(value["name"], str) or not isinstance(value["dtype"], str):
        raise TypeError("the name or dtype of a tensor is not text")
    return TensorSpec(value["name"], value["dtype"], tuple(shape))


def _profile(value: Any) -> Profile:
    _check_fields(value, Profile)
    return Profile(*(_shape(value[bound]) for bound in ("min", "opt", "max")))
