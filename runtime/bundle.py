"""The bundle: a folder with everything the box needs, and the manifest that vouches for it.

    manifest.json        schema, files with sha256, graphs, options, provenance, parity figures
    clip_umci.onnx …     the graphs, with external data beside them when large
    text_features.npz    `categories` [K] and `features` float32 [K,C_t,2]
    parity.json          how far every graph is from PyTorch, in full

Every number that belongs to a model is here and nowhere in the runtime's code. Nothing is ever
unpickled. Opening a bundle checks the schema, every file's hash and that no path leaves the folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.decision import DecisionOptions
from clipsam.runtime.errors import BundleError, CategoryError
from clipsam.runtime.files import sha256, write_bytes
from clipsam.runtime.fusion import FusionOptions
from clipsam.runtime.preprocess import PreprocessOptions
from clipsam.runtime.prompts import PromptOptions
from clipsam.runtime.session import TensorSpec

SCHEMA = 1
MANIFEST = "manifest.json"
TEXT_FEATURES = "text_features.npz"
REBUILD = "build it again with `python export/build_engines.py`"

# The contract between export and runtime: graph -> (inputs, outputs).
GRAPHS = {
    "clip_umci": (("image", "text"), ("rough",)),
    "sam_encoder": (("image", "valid_size"), ("embedding",)),
    "sam_decoder": (("embedding", "point_coords", "point_labels"), ("logits", "scores")),
}

T = TypeVar("T")


@dataclass(frozen=True)
class GraphEntry:
    """One graph: its file, and its tensors as the exporter declared them."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input called `name`."""
        return next(spec for spec in self.inputs if spec.name == name)


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds, checked."""

    name: str
    graphs: Mapping[str, GraphEntry]
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
            values["graphs"] = {n: _graph(g) for n, g in values["graphs"].items()}
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
        for name, (inputs, outputs) in GRAPHS.items():
            entry = manifest.graphs.get(name)
            if entry is None or (
                {spec.name for spec in entry.inputs} != set(inputs)
                or {spec.name for spec in entry.outputs} != set(outputs)
            ):
                raise BundleError(f"{MANIFEST} does not describe the graph {name}: {REBUILD}.")
        return manifest


class Bundle:
    """An opened bundle. `Bundle.open` is how to get one.

    Attributes:
      folder: where it is.
      manifest: what it says of itself.
      id: the first 12 hex digits of the manifest's sha256; it names the exact content, since the
        manifest holds the hash of every other file.
    """

    def __init__(self, folder: Path, manifest: Manifest, identity: str) -> None:
        self.folder, self.manifest, self.id = folder, manifest, identity
        self._text = _read_text(folder / TEXT_FEATURES, manifest.categories)

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Read and verify the bundle in `folder`; raises BundleError."""
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"There is no bundle in {folder} ({MANIFEST}: {error.strerror}): {REBUILD}, or "
                "give the folder that holds the manifest."
            ) from error
        manifest = Manifest.from_json(data.decode("utf-8", errors="replace"))
        named = {graph.file for graph in manifest.graphs.values()} | {TEXT_FEATURES}
        if unlisted := sorted(named - set(manifest.files)):
            raise BundleError(f"{MANIFEST} has no hash of {unlisted[0]}: {REBUILD}.")
        for name, digest in manifest.files.items():
            _verify(folder, name, digest)
        return cls(folder, manifest, hashlib.sha256(data).hexdigest()[:12])

    def graph_path(self, name: str) -> Path:
        """The ONNX file of the graph called `name`."""
        return self.folder / self.manifest.graphs[name].file

    def text(self, category: str) -> NDArray[np.float32]:
        """Text features L float32 [C_t,2] of a category; column 0 normal, column 1 abnormal.

        Raises CategoryError, offering the closest known words.
        """
        found = self._text.get(category) if isinstance(category, str) else None
        if found is None:
            close = difflib.get_close_matches(str(category), self._text, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}? It" if close else "it"
            raise CategoryError(
                f"The bundle does not know the category {category!r}; {hint} knows "
                f"{', '.join(self._text)}. 'object' fits anything; add others with --categories "
                "when building the bundle."
            )
        return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` last, after every file it names."""
    write_bytes(folder / MANIFEST, manifest.to_json().encode())


def write_text_features(
    path: Path, categories: tuple[str, ...], features: NDArray[np.float32]
) -> None:
    """Write `text_features.npz`: features float32 [K,C_t,2] of K categories."""
    with path.open("wb") as file:
        np.savez(file, categories=np.array(categories), features=features.astype(np.float32))


def _read_text(path: Path, categories: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    try:
        # Opened here: NumPy leaves a file open that it cannot load.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            names, features = file["categories"].tolist(), file["features"]
        if tuple(names) != categories or features.shape[:1] != (len(names),):
            raise ValueError("its categories are not the manifest's")
        if features.dtype != np.float32 or features.ndim != 3 or features.shape[2] != 2:
            raise ValueError(f"its features are {features.dtype}{list(features.shape)}")
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        raise BundleError(f"{path.name} cannot be read ({error}): {REBUILD}.") from error
    return {name: features[i] for i, name in enumerate(names)}


def _graph(values: dict[str, Any]) -> GraphEntry:
    if unknown := set(values) - {f.name for f in fields(GraphEntry)}:
        raise ValueError(f"unknown graph field {sorted(unknown)[0]}")
    return GraphEntry(
        values["file"],
        *(
            tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in values[side])
            for side in ("inputs", "outputs")
        ),
    )


def _check_types(values: dict[str, Any]) -> None:
    """Raise TypeError or ValueError where JSON of the right form holds values of a wrong type."""
    texts = {"name": values["name"], **values["files"]}
    texts.update({f"graph {name}": graph.file for name, graph in values["graphs"].items()})
    texts.update({f"category {i}": name for i, name in enumerate(values["categories"])})
    for name, text in texts.items():
        if not isinstance(text, str) or "\0" in text + name:
            raise TypeError(f"{name} is {text!r}, not a word")
    for name in ("provenance", "parity"):
        if not isinstance(values.get(name, {}), dict):
            raise TypeError(f"{name} is not a mapping")
    for graph in ("clip_umci", "sam_encoder"):
        if graph in values["graphs"]:
            shape = values["graphs"][graph].input("image").shape
            if len(shape) != 4 or not isinstance(shape[1], int):
                raise ValueError(f"the image of {graph} has no fixed size")


def _verify(folder: Path, name: str, digest: str) -> None:
    """Refuse a path that leaves the folder, a missing file, and one with another hash."""
    posix = PurePosixPath(name)
    escapes = posix.is_absolute() or ".." in posix.parts or PureWindowsPath(name).is_absolute()
    path = folder / name
    if escapes or "\\" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"The bundle names {name!r}, which lies outside its folder: do not use it; {REBUILD}."
        )
    try:
        found = sha256(path)
    except OSError as error:
        raise BundleError(
            f"The bundle's file {name} cannot be read ({error.strerror}): copy the whole folder "
            f"again, or {REBUILD}."
        ) from error
    if found != digest:
        raise BundleError(
            f"The bundle's file {name} was truncated or altered (its sha256 is not the "
            f"manifest's): copy the whole folder again, or {REBUILD}."
        )
