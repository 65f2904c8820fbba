"""The schema of `manifest.json`: what a bundle says of itself, read with every value checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.core.errors import BundleError
from clipsam.runtime.core.strict_json import loads
from clipsam.runtime.stages.decision import DecisionOptions
from clipsam.runtime.stages.fusion import FusionOptions
from clipsam.runtime.stages.preprocess import PreprocessOptions
from clipsam.runtime.stages.prompts import PromptOptions

SCHEMA = 4
_READS = (3, SCHEMA)  # 3 is 4 without `prepare`
MANIFEST = "manifest.json"
FLOAT32 = "fp32"  # every bundle has it
REBUILD = "build it again with `python export/build_engines.py`"

# The contract between export and runtime: graph -> (inputs, outputs).
GRAPHS = {
    "clip_umci": (("image", "text"), ("rough", "tokens")),
    "sam_encoder": (("image", "valid_size"), ("embedding",)),
    "sam_decoder": (("embedding", "point_coords", "point_labels"), ("logits", "scores")),
}
# The graph that makes the pictures of the others, where a bundle has one and the device is not the
# CPU: `stages/prepare.py`. Its inputs are the image and a resize's matrices, its outputs pictures.
PREPARE = "prepare"
_RESIZES = ("clip_columns", "clip_rows", "sam_columns", "sam_rows")


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

    def output(self, name: str) -> TensorSpec:
        """The output called `name`."""
        return next(spec for spec in self.outputs if spec.name == name)


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
    prepare: GraphEntry | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def graphs(self) -> Mapping[str, GraphEntry]:
        """The float32 graphs, whose tensors every variant has."""
        return self.variants[FLOAT32]

    def every_graph(self) -> Iterator[GraphEntry]:
        """The entries of all graphs in all precisions; a file may have several."""
        for graphs in self.variants.values():
            yield from graphs.values()
        if self.prepare is not None:
            yield self.prepare

    @property
    def clip_image_size(self) -> int:
        """S, the side of CLIP's input in pixels."""
        return int(self.graphs["clip_umci"].input("image").shape[1])

    @property
    def text_size(self) -> int:
        """C_t, the length of a text feature."""
        return int(self.graphs["clip_umci"].input("text").shape[1])

    @property
    def sam_image_size(self) -> int:
        """The side of SAM's square input in pixels (1024 in the paper)."""
        return int(self.graphs["sam_encoder"].input("image").shape[1])

    def to_json(self) -> str:
        """The text of `manifest.json`, always of the schema of this version."""
        values = {**asdict(self), "schema": SCHEMA}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, data: str | bytes) -> Manifest:
        """Inverse of `to_json`; raises BundleError on anything it does not know."""
        try:
            values = loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON ({error}): {REBUILD}.") from error
        schema = values.get("schema") if isinstance(values, dict) else None
        if type(schema) is not int or schema not in _READS:
            raise BundleError(
                f"The bundle has schema {schema!r}, this version of clipsam reads schema "
                f"{' and '.join(map(str, _READS))}: install the clipsam that built it, or "
                f"{REBUILD}."
            )
        try:
            manifest = cls(**_checked(values))
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise BundleError(
                f"{MANIFEST} is damaged ({type(error).__name__}: {str(error)[:300]}): {REBUILD}."
            ) from error
        _check_contract(manifest)
        return manifest


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
    if manifest.prepare is not None:
        _check_prepare(manifest, manifest.prepare)


def _check_prepare(manifest: Manifest, entry: GraphEntry) -> None:
    """Refuse a graph `prepare` whose pictures are not what the others take."""
    inputs = {"image", *_RESIZES, *(f"{axis}_weights" for axis in _RESIZES)}
    outputs = {
        TensorSpec(name, "uint8", (1, side, side, 3))
        for name, side in (("clip", manifest.clip_image_size), ("sam", manifest.sam_image_size))
    }
    found = {spec.name for spec in entry.inputs}, set(entry.outputs), entry.precision
    if found != (inputs, outputs, FLOAT32):
        raise BundleError(
            f"{MANIFEST} describes a graph {PREPARE} that does not fit the others: {REBUILD}."
        )


_KINDS = {
    "preprocess": PreprocessOptions,
    "prompts": PromptOptions,
    "fusion": FusionOptions,
    "decision": DecisionOptions,
}
_MOST = 1024  # prompts, points: SAM's memory grows with them
MOST_LETTERS = 200  # of a word
_MOST_SIDE, _MOST_AXIS, _MOST_CATEGORIES = 4096, 1 << 20, 10_000
_MOST_SEED = (1 << 63) - 1
_DTYPES = ("float32", "float16", "uint8", "int64", "int32", "bool")


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Manifest`. Raises TypeError, ValueError or KeyError on what does not fit."""
    _word(values["name"], "name")
    files = _mapping(values["files"], "files")
    for name, digest in files.items():
        _word(name, "a file's name")
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"the hash of {name} is not a sha256")
    variants = _mapping(values["variants"], "variants")
    if unknown := set(variants) - set(PRECISIONS):
        raise ValueError(f"{min(unknown)!r} is not a precision")
    if FLOAT32 not in variants:
        raise ValueError(f"there are no graphs in {FLOAT32}")
    values["variants"] = {
        precision: {name: _graph(g, name) for name, g in _mapping(graphs, precision).items()}
        for precision, graphs in variants.items()
    }
    categories = _list(values["categories"], "categories")
    if not 0 < len(categories) <= _MOST_CATEGORIES or len(set(categories)) < len(categories):
        raise ValueError(f"{len(categories)} categories, or one of them twice")
    values["categories"] = tuple(_word(word, "a category") for word in categories)
    for name, kind in _KINDS.items():
        values[name] = _options(kind, _mapping(values[name], name), name)
    if values.get("prepare") is not None:
        values["prepare"] = _graph(values["prepare"], PREPARE)
    for name in ("provenance", "parity"):
        _mapping(values.get(name, {}), name)
    _check_sizes(values["variants"][FLOAT32])
    return values


def _options(kind: Any, values: dict[str, Any], where: str) -> Any:
    """An options object whose values have the types of its defaults."""
    for field_ in fields(kind):
        value, wanted = values.get(field_.name, field_.default), type(field_.default)
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            raise TypeError(f"{field_.name} of {where} is {value!r}")
        if wanted is float and not math.isfinite(value):
            raise ValueError(f"{field_.name} of {where} is not finite")
        if wanted is int and not 0 <= value <= (_MOST_SEED if field_.name == "seed" else _MOST):
            raise ValueError(f"{field_.name} of {where} is {value}")
    return kind(**values)


def _graph(values: Any, name: str) -> GraphEntry:
    values = _mapping(values, name)
    if unknown := set(values) - {f.name for f in fields(GraphEntry)}:
        raise ValueError(f"unknown graph field {min(unknown)}")
    if values["precision"] not in PRECISIONS:
        raise ValueError(f"{values['precision']!r} is not a precision")
    if not _word(values["file"], "file").endswith(".onnx"):
        raise ValueError(f"{values['file']} is not an ONNX file")
    inputs, outputs = (
        tuple(_tensor(_mapping(spec, side)) for spec in _list(values[side], side))
        for side in ("inputs", "outputs")
    )
    return GraphEntry(values["file"], inputs, outputs, values["precision"])


def _tensor(values: dict[str, Any]) -> TensorSpec:
    name, shape = _word(values["name"], "a tensor's name"), _list(values["shape"], "a shape")
    if values["dtype"] not in _DTYPES or len(shape) > 8:
        raise ValueError(f"{name} has the dtype {values['dtype']!r} and {len(shape)} axes")
    for size in shape:
        if not isinstance(size, str) and not (type(size) is int and 0 < size <= _MOST_AXIS):
            raise ValueError(f"an axis of {name} is {size!r}")
    return TensorSpec(name, values["dtype"], tuple(shape))


def _check_sizes(graphs: dict[str, GraphEntry]) -> None:
    """Raise ValueError unless the sizes that the runtime reads from the manifest are there."""
    for name in ("clip_umci", "sam_encoder"):
        if name in graphs:
            shape = graphs[name].input("image").shape
            side = shape[1] if len(shape) == 4 else None
            if not isinstance(side, int) or side > _MOST_SIDE or shape[1:] != (side, side, 3):
                raise ValueError(f"the image of {name} has no fixed size: {list(shape)}")
    if "clip_umci" in graphs:
        text = graphs["clip_umci"].input("text").shape
        if len(text) != 3 or not isinstance(text[1], int):
            raise ValueError(f"the text of clip_umci has no fixed size: {list(text)}")


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is not a mapping")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} is not a list")
    return value


def _word(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MOST_LETTERS:
        raise TypeError(f"{name} is {value!r:.100}, not a word")
    return value
