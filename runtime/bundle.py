"""The bundle: a folder with everything the box needs, and the manifest that vouches for it.

    manifest.json        schema, files with sha256, graphs, options, provenance, parity figures
    clip_umci.onnx …     the graphs in float32, with external data beside them when large
    clip_umci.fp16.onnx  the same in another precision; as many as were built
    text_features.npz    `categories` [K] and `features` float32 [K,C_t,2]
    parity.json          how far every graph is from PyTorch, in full

Every number that belongs to a model is here and nowhere in the runtime's code. Nothing is ever
unpickled. Opening a bundle checks the schema, that every file is there and none lies outside the
folder, and every file's hash; `ClipSAM.open` leaves out the hashes of precisions it does not use.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import PRECISIONS
from clipsam.runtime.core.errors import BundleError, CategoryError
from clipsam.runtime.core.files import DATA_SUFFIX, sha256, write_bytes
from clipsam.runtime.manifest import (
    FLOAT32,
    GRAPHS,
    MANIFEST,
    REBUILD,
    SCHEMA,
    GraphEntry,
    Manifest,
)

__all__ = [
    "FLOAT32",
    "GRAPHS",
    "MANIFEST",
    "REBUILD",
    "SCHEMA",
    "TEXT_FEATURES",
    "Bundle",
    "GraphEntry",
    "Manifest",
    "write_manifest",
    "write_text_features",
]

TEXT_FEATURES = "text_features.npz"
_HASHING = 4  # files at once: a bundle has three large ones


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
        self._verified: set[str] = set()
        self._text = _read_text(folder / TEXT_FEATURES, manifest.categories)

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> Bundle:
        """Read and verify the bundle in `folder`; raises BundleError.

        Without `verify`, no hash but that of the text features is compared: call `verify` for the
        files that will be used before they are.
        """
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
        graphs = (g for variant in manifest.variants.values() for g in variant.values())
        named = {graph.file for graph in graphs} | {TEXT_FEATURES}
        if unlisted := sorted(named - set(manifest.files)):
            raise BundleError(f"{MANIFEST} has no hash of {unlisted[0]}: {REBUILD}.")
        for name in manifest.files:
            _check_place(folder, name)
        _verify(folder, TEXT_FEATURES, manifest.files[TEXT_FEATURES])  # before it is read
        bundle = cls(folder, manifest, hashlib.sha256(data).hexdigest()[:12])
        bundle._verified.add(TEXT_FEATURES)
        if verify:
            bundle.verify(manifest.files)
        return bundle

    def verify(self, names: Iterable[str]) -> None:
        """Raise BundleError unless each of these files has the manifest's sha256, or had before.

        Several at once: gigabytes take seconds, and hashing does not hold Python's lock.
        """
        new = [name for name in names if name not in self._verified]
        with ThreadPoolExecutor(min(_HASHING, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda n: _verify(self.folder, n, self.manifest.files[n]), new):
                pass
        self._verified.update(new)

    def files_for(self, entries: Iterable[GraphEntry]) -> list[str]:
        """The files behind these graphs: all but what belongs to other graphs alone."""
        every = (entry for graphs in self.manifest.variants.values() for entry in graphs.values())
        others = {entry.file for entry in every} - {entry.file for entry in entries}
        return [n for n in self.manifest.files if n.removesuffix(DATA_SUFFIX) not in others]

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that all three graphs are there in, "fp32" first."""
        variants = self.manifest.variants
        return tuple(p for p in PRECISIONS if set(variants.get(p, ())) == set(GRAPHS))

    def graph_entry(self, name: str, precision: str = FLOAT32) -> GraphEntry:
        """What the manifest says of the graph called `name` in this precision.

        Raises BundleError, naming what there is, when the bundle has no such graph.
        """
        try:
            return self.manifest.variants[precision][name]
        except KeyError:
            there = ", ".join(p for p, graphs in self.manifest.variants.items() if name in graphs)
            raise BundleError(
                f"The bundle has no graph {name} in {precision}, only in {there or 'none'}: build "
                f"it again with `python export/build_engines.py --precision {precision}`, or use "
                "another precision."
            ) from None

    def graph_path(self, name: str, precision: str = FLOAT32) -> Path:
        """The ONNX file of the graph called `name` in this precision; see `graph_entry`."""
        return self.folder / self.graph_entry(name, precision).file

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


def _check_place(folder: Path, name: str) -> None:
    """Refuse a path that leaves the folder, and a missing file."""
    posix = PurePosixPath(name)
    escapes = posix.is_absolute() or ".." in posix.parts or PureWindowsPath(name).is_absolute()
    path = folder / name
    if escapes or "\\" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"The bundle names {name!r}, which lies outside its folder: do not use it; {REBUILD}."
        )
    try:
        path.stat()
    except OSError as error:
        raise _unreadable(name, error) from error


def _verify(folder: Path, name: str, digest: str) -> None:
    """Refuse a file that cannot be read, or with another hash."""
    try:
        found = sha256(folder / name)
    except OSError as error:
        raise _unreadable(name, error) from error
    if found != digest:
        raise BundleError(
            f"The bundle's file {name} was truncated or altered (its sha256 is not the "
            f"manifest's): copy the whole folder again, or {REBUILD}."
        )


def _unreadable(name: str, error: OSError) -> BundleError:
    return BundleError(
        f"The bundle's file {name} cannot be read ({error.strerror}): copy the whole folder "
        f"again, or {REBUILD}."
    )
