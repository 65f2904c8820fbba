"""The schema of `manifest.json`: what a bundle says of itself, read with every value checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from clipsam.runtime.backends.base import PRECISIONS, TensorSpec
from clipsam.runtime.core.errors import BundleError
from clipsam.runtime.stages.decision import DecisionOptions
from clipsam.runtime.stages.fusion import FusionOptions
from clipsam.runtime.stages.preprocess import PreprocessOptions
from clipsam.runtime.stages.prompts import PromptOptions

SCHEMA = 2
MANIFEST = "manifest.json"
FLOAT32 = "fp32"  # every bundle has it
REBUILD = "build it again with `python export/build_engines.py`"

# The contract between export and runtime: graph -> (inputs, outputs).
GRAPHS = {
    "clip_umci": (("image", "text"), ("rough",)),
    "sam_encoder": (("image", "valid_size"), ("embedding",)),
    "sam_decoder": (("embedding", "point_coords", "point_labels"), ("logits", "scores")),
}


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file, and its tensors as the exporter declared them.

    `precision` is the file's own. It differs from the one it is listed under where a precision
    takes over the file of another: int8 has no decoder of its own.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str = FLOAT32

    def input(self, name: str) -> TensorSpec:
        """The input called `name`."""
        return next(spec for spec in self.inputs if spec.name == name)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds, checked."""

    name: str
    variants: Mapping[str, Mapping[str, GraphEntry]]  # precision -> graph -> entry
    files: Mapping[str, str]  # relative path -> sha256, of every file but the manifest
    categories: tuple[str, ...]
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    fusion: FusionOptions = field(default_factory=FusionOptions)
    decision: DecisionOptions = field(default_factory=DecisionOptions)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def graphs(self) -> Mapping[str, GraphEntry]:
        """The float32 graphs, whose tensors every variant has."""
        return self.variants[FLOAT32]

    @property
    def clip_image_size(self) -> int:
        """S, the side of CLIP's input in pixels."""
        return int(self.graphs["clip_umci"].input("image").shape[1])

    @property
    def sam_image_size(self) -> int:
        """The side of SAM's square input in pixels (1024 in the paper)."""
        return int(self.graphs["sam_encoder"].input("image").shape[1])

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Inverse of `to_json`; raises BundleError on anything it does not know."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON ({error}): {REBUILD}.") from error
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != SCHEMA:
            raise BundleError(
                f"The bundle has schema {schema!r}, this version of clipsam reads schema {SCHEMA}: "
                f"install the clipsam that built it, or {REBUILD}."
            )
        try:
            values["variants"] = {
                precision: {name: _graph(entry) for name, entry in graphs.items()}
                for precision, graphs in values["variants"].items()
            }
            values["categories"] = tuple(values["categories"])
            for name, kind in (
                ("preprocess", PreprocessOptions),
                ("prompts", PromptOptions),
                ("fusion", FusionOptions),
                ("decision", DecisionOptions),
            ):
                values[name] = kind(**values[name])
            _check_types(values)
            manifest = cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise BundleError(
                f"{MANIFEST} is damaged ({type(error).__name__}: {error}): {REBUILD}."
            ) from error
        _check_contract(manifest)
        return manifest


def _graph(values: dict[str, Any]) -> GraphEntry:
    if unknown := set(values) - {f.name for f in fields(GraphEntry)}:
        raise ValueError(f"unknown graph field {sorted(unknown)[0]}")
    inputs, outputs = (
        tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in values[side])
        for side in ("inputs", "outputs")
    )
    return GraphEntry(values["file"], inputs, outputs, values["precision"])


def _check_contract(manifest: Manifest) -> None:
    """Refuse a manifest whose float32 graphs are not the contract's, or whose variants differ."""
    for name, (inputs, outputs) in GRAPHS.items():
        entry = manifest.graphs.get(name)
        if entry is None or (
            {spec.name for spec in entry.inputs} != set(inputs)
            or {spec.name for spec in entry.outputs} != set(outputs)
        ):
            raise BundleError(f"{MANIFEST} does not describe the graph {name}: {REBUILD}.")
    for precision, graphs in manifest.variants.items():
        for name, entry in graphs.items():
            original = manifest.graphs.get(name)
            if original is None or (entry.inputs, entry.outputs) != (
                original.inputs,
                original.outputs,
            ):
                raise BundleError(
                    f"{MANIFEST} describes {name} in {precision} with other tensors than in "
                    f"{FLOAT32}: {REBUILD}."
                )


def _check_types(values: dict[str, Any]) -> None:
    """Raise TypeError or ValueError where JSON of the right form holds values of a wrong type."""
    texts = {"name": values["name"], **values["files"]}
    for precision, graphs in values["variants"].items():
        for name, graph in graphs.items():
            texts[f"graph {name} in {precision}"] = graph.file
        for found in (precision, *(graph.precision for graph in graphs.values())):
            if found not in PRECISIONS:
                raise ValueError(f"{found!r} is not a precision")
    if FLOAT32 not in values["variants"]:
        raise ValueError(f"there are no graphs in {FLOAT32}")
    texts.update({f"category {i}": name for i, name in enumerate(values["categories"])})
    for name, text in texts.items():
        if not isinstance(text, str) or "\0" in text + name:
            raise TypeError(f"{name} is {text!r}, not a word")
    for name in ("provenance", "parity"):
        if not isinstance(values.get(name, {}), dict):
            raise TypeError(f"{name} is not a mapping")
    for name in ("clip_umci", "sam_encoder"):
        if name in values["variants"][FLOAT32]:
            shape = values["variants"][FLOAT32][name].input("image").shape
            if len(shape) != 4 or not isinstance(shape[1], int):
                raise ValueError(f"the image of {name} has no fixed size")
