"""Where a bundle comes from, and the keys that tell whether a graph has to be exported again."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from clipsam.runtime.bundle import FLOAT32

_ROOT = Path(__file__).resolve().parents[2]

_LIBRARIES = (
    "torch", "torchvision", "open_clip_torch", "segment-anything", "onnx", "onnxscript",
    "onnxruntime", "numpy", "opencv-python-headless",
)  # fmt: skip
_ALL = (
    "clipsam.export.graphs.onnx_export",
    "clipsam.export.graphs.sources",
    "clipsam.export.bundle.variants",
    "clipsam.export.parity.onnx_vs_torch",
    "clipsam.export.parity.tensors",
    "clipsam.export.parity.inputs",
    "clipsam.export.parity.tolerances",
    "clipsam.export.graphs.checkpoints",
    "clipsam.research.models.presets",
    "clipsam.research.models.checkpoints",
)
# The modules whose source a graph (or the text features) is made from.
_MODULES = {
    "clip_umci": (
        *_ALL,
        "clipsam.export.graphs.clip_umci",
        "clipsam.research.models.clip",
        "clipsam.research.models.umci",
    ),
    "sam_encoder": (
        *_ALL,
        "clipsam.export.graphs.sam_encoder",
        "clipsam.export.graphs.sam_attention",
    ),
    "sam_decoder": (*_ALL, "clipsam.export.graphs.sam_decoder"),
    "text": ("clipsam.research.models.prompt_ensemble", "clipsam.research.models.presets"),
}
# What is added for the graph in another precision than float32.
_HALF = ("clipsam.export.quantization.half", "clipsam.export.parity.half_emulation")
_PRECISION_MODULES = {
    "fp16": _HALF,
    "bf16": _HALF,
    "int8": (
        *_HALF,
        "clipsam.export.quantization.static_int8",
        "clipsam.export.quantization.activations",
        "clipsam.export.graphs.calibration",
    ),
    "int8-dynamic": (
        "clipsam.export.quantization.dynamic_int8",
        "clipsam.export.quantization.static_int8",
        "clipsam.export.quantization.activations",
        "clipsam.export.graphs.calibration",
    ),
}


def content_key(name: str, facts: Mapping[str, Any], precision: str = FLOAT32) -> str:
    """sha256 over everything that decides what the part called `name` contains.

    `facts` (weights' digests, configuration, opset) is joined by the precision, the sources of the
    modules that make the part and the libraries' versions.
    """
    modules = (*_MODULES[name], *_PRECISION_MODULES.get(precision, ()))
    sources = {module: hashlib.sha256(_source(module)).hexdigest() for module in sorted(modules)}
    facts = {**facts, "precision": precision}
    content = {"name": name, "facts": facts, "sources": sources, "versions": library_versions()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that shape or check a graph."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"  # another distribution of the same module
    return versions


def source_commit() -> str | None:
    """The clone's commit, with "-dirty" if tracked files differ; None when run from a wheel."""
    top = _git("rev-parse", "--show-toplevel")
    commit = _git("rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != _ROOT:
        return None
    return f"{commit}-dirty" if _git("status", "--porcelain", "-uno") else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _source(module: str) -> bytes:
    file = importlib.import_module(module).__file__
    assert file is not None  # these are plain modules
    return Path(file).read_bytes()
