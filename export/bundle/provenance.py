"""Where a bundle comes from, and the keys that tell whether a graph has to be exported again."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from clipsam.research.models.presets import Preset
from clipsam.research.models.prompt_ensemble import ABNORMAL_STATES, NORMAL_STATES, TEMPLATES

_ROOT = Path(__file__).resolve().parents[2]

_LIBRARIES = (
    "torch", "torchvision", "open_clip_torch", "segment-anything", "onnx", "onnxscript",
    "onnxruntime", "numpy", "opencv-python-headless",
)  # fmt: skip
# Whatever decides what a graph contains, and whether it passes its check, is in one of these.
# Hashing them whole exports more often than needed, and never keeps a graph that an edit changed.
_PACKAGES = ("export", "runtime", "research/models")


def provenance(preset: Preset, digests: Mapping[str, str]) -> dict[str, Any]:
    """What the manifest says of where a bundle comes from. `digests` of the weights, by part, are
    sha256 or "random:SEED"."""
    return {
        "preset": preset.name,
        "description": preset.description,
        "checkpoints": dict(digests),
        "source_commit": source_commit(),
        "versions": library_versions(),
        "prompt_ensemble": {
            "normal": NORMAL_STATES,
            "abnormal": ABNORMAL_STATES,
            "templates": TEMPLATES,
        },
    }


def content_key(facts: Mapping[str, Any], *part: str) -> str:
    """sha256 over everything that decides what a part of a bundle contains.

    `facts` (weights' digests, configuration, opset) and the words of `part` (a graph's name and
    precision) are joined by the sources of this project and the libraries' versions.
    """
    folders = [_ROOT / package for package in _PACKAGES]
    content = [part, facts, sources_digest(folders), library_versions()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sources_digest(folders: Sequence[Path]) -> str:
    """sha256 over the names and contents of the Python files in and below `folders`."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
