"""The bundle: a folder with everything the box needs, and the manifest that vouches for it.

    manifest.json        schema, files with sha256, graphs, options, provenance, parity figures
    clip_umci.onnx …     the graphs in float32, with external data beside them when large
    prepare.onnx         the pictures' resizes, for devices other than the CPU
    clip_umci.fp16.onnx  the same in another precision; as many as were built
    text_features.npz    `categories` [K] and `features` float32 [K,C_t,2]
    naming.npz           words for regions, and what names them; not in every bundle
    parity.json          how far every graph is from PyTorch, in full

Every number that belongs to a model is here and nowhere in the runtime's code. Nothing is ever
unpickled. Opening a bundle checks the schema, that every file is there, a regular one of the folder
itself and of no absurd size, every file's hash, and that no graph reads a file that has none;
`ClipSAM.open` leaves out the hashes of precisions it does not use.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.core.errors import BundleError, CategoryError, OptionError
from clipsam.runtime.core.files import DATA_SUFFIX, open_regular, sha256, write_bytes
from clipsam.runtime.external_data import external_files
from clipsam.runtime.manifest import (
    FLOAT32,
    GRAPHS,
    MANIFEST,
    PREPARE,
    REBUILD,
    SCHEMA,
    GraphEntry,
    Manifest,
)
from clipsam.runtime.naming_file import NAMING, read_naming, write_naming
from clipsam.runtime.stages.naming import UNKNOWN, Namer
from clipsam.runtime.text_features import TEXT_FEATURES, read_text_features, write_text_features

__all__ = [
    "FLOAT32",
    "GRAPHS",
    "MANIFEST",
    "NAMING",
    "PREPARE",
    "REBUILD",
    "SCHEMA",
    "TEXT_FEATURES",
    "Bundle",
    "GraphEntry",
    "Manifest",
    "write_manifest",
    "write_naming",
    "write_text_features",
]

# Bytes of a file, at most. ONNX files end at protobuf's 2 GiB, larger weights lie beside them.
_MOST_MANIFEST, _MOST_GRAPH, _MOST_WEIGHTS, _MOST_OTHER = 4 << 20, 2 << 30, 16 << 30, 1 << 30
_HASHING = 4  # files at once: a bundle has three large ones


class Bundle:
    """An opened bundle. `Bundle.open` is how to get one.

    Attributes:
      folder: where it is.
      manifest: what it says of itself.
      id: the first 12 hex digits of the manifest's sha256; it names the exact content, since the
        manifest holds the hash of every other file.
      namer: what names regions; None in a bundle that cannot.
    """

    def __init__(self, folder: Path, manifest: Manifest, identity: str) -> None:
        self.folder, self.manifest, self.id = folder, manifest, identity
        self._verified: set[str] = set()
        self._text = read_text_features(folder / TEXT_FEATURES, manifest)
        self.namer: Namer | None = None
        if NAMING in manifest.files:
            self.namer = read_naming(folder / NAMING, manifest)

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> Bundle:
        """Read and verify the bundle in `folder`; raises BundleError.

        Without `verify`, no hash but that of the text features is compared: call `verify` for the
        files that will be used before they are.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            with open_regular(path, _MOST_MANIFEST) as file:
                data = file.read()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise BundleError(
                f"There is no bundle in {folder} ({MANIFEST}: {reason}): {REBUILD}, or "
                "give the folder that holds the manifest."
            ) from error
        manifest = Manifest.from_json(data)
        named = {graph.file for graph in manifest.every_graph()} | {TEXT_FEATURES}
        if unlisted := sorted(named - set(manifest.files)):
            raise BundleError(f"{MANIFEST} has no hash of {unlisted[0]}: {REBUILD}.")
        for name in (MANIFEST, *manifest.files):
            _check_place(folder, name)
        read = [name for name in (TEXT_FEATURES, NAMING) if name in manifest.files]
        for name in read:
            _verify(folder, name, manifest.files[name])  # before it is read
        bundle = cls(folder, manifest, hashlib.sha256(data).hexdigest()[:12])
        bundle._verified.update(read)
        if verify:
            bundle.verify(manifest.files)
        return bundle

    def kinds(self, words: Iterable[str]) -> frozenset[str]:
        """The words for regions that are meant by these: themselves, and those that mean the same.

        Raises OptionError for a word the bundle does not know, and for a bundle that names nothing.
        """
        if self.namer is None:
            raise OptionError(
                f"The bundle in {self.folder} has no words for defects: {REBUILD}, or leave "
                "--look-for and --ignore-kind out."
            )
        words = list(words)
        known = (*self.namer.words, UNKNOWN)
        for word in words:
            if word not in known:
                close = _nearest(word, known)
                hint = f"did you mean {' or '.join(map(repr, close))}? It" if close else "it"
                raise OptionError(
                    f"The bundle has no word {word!r} for a defect; {hint} knows "
                    f"{', '.join(known)}. A machine with PyTorch adds others: `clipsam words "
                    f'--defects {self.folder} "{word}"`.'
                )
        return self.namer.alike(words)

    def verify(self, names: Iterable[str]) -> None:
        """Raise BundleError unless each of these files has the manifest's sha256, or had before.

        A graph among them may read no file but itself and the weights beside it.
        Several at once: gigabytes take seconds, and hashing does not hold Python's lock.
        """
        new = [name for name in names if name not in self._verified]
        with ThreadPoolExecutor(min(_HASHING, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda n: _verify(self.folder, n, self.manifest.files[n]), new):
                pass
        for name in new:
            if name.endswith(".onnx"):
                self._check_external(name)
        self._verified.update(new)

    def _check_external(self, name: str) -> None:
        """Refuse a graph that reads what the manifest does not vouch for under the graph's name."""
        try:
            found = external_files(self.folder / name)
        except (OSError, ValueError) as error:
            raise BundleError(
                f"The bundle's file {name} is not an ONNX graph ({error}): {REBUILD}."
            ) from error
        if strange := sorted(found - ({name + DATA_SUFFIX} & set(self.manifest.files))):
            raise BundleError(
                f"The bundle's graph {name} reads the file {strange[0][:200]!r}, which {MANIFEST} "
                f"does not vouch for: do not use it; {REBUILD}."
            )

    def files_for(self, entries: Iterable[GraphEntry]) -> list[str]:
        """The files behind these graphs: all but what belongs to other graphs alone."""
        every = {entry.file for entry in self.manifest.every_graph()}
        others = every - {entry.file for entry in entries}
        return [n for n in self.manifest.files if n.removesuffix(DATA_SUFFIX) not in others]

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions with graphs of their own that all three are there in, "fp32" first."""
        variants = self.manifest.variants
        return tuple(p for p in PRECISIONS if set(variants.get(p, ())) == set(GRAPHS))

    def graph_entry(self, name: str, precision: str = FLOAT32) -> GraphEntry:
        """What the manifest says of the graph called `name` in this precision.

        Raises BundleError, naming what there is, when the bundle has no such graph.
        """
        known = PRECISIONS.get(precision)
        if known is not None and known.graphs is not None:
            return replace(self.graph_entry(name, known.graphs), precision=precision)
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
            close = _nearest(str(category), self._text)
            hint = f"did you mean {' or '.join(map(repr, close))}? It" if close else "it"
            raise CategoryError(
                f"The bundle does not know the category {category!r}; {hint} knows "
                f"{', '.join(self._text)}. 'object' fits anything; a machine with PyTorch adds "
                f'others: `clipsam words {self.folder} "{category}"`.'
            )
        return found


def _nearest(word: str, known: Iterable[str]) -> list[str]:
    """Up to three known words: those spelt alike, then those that share a word of a phrase."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=3)
    parts = set(word.casefold().split())
    sharing = (name for name in folded if parts & set(name.split()))
    return [folded[name] for name in dict.fromkeys((*close, *sharing))][:3]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` last, after every file it names."""
    write_bytes(folder / MANIFEST, manifest.to_json().encode())


def _check_place(folder: Path, name: str) -> None:
    """Refuse what is not a regular file of the folder itself, and one too large to be what it is.

    Links are refused, too: where they lead may change, or lie outside.
    """
    # ":" would name another disk or a stream on Windows.
    if name in ("", ".", "..") or any(character in name for character in "/\\:"):
        raise BundleError(
            f"The bundle names {name!r}, which lies outside its folder: do not use it; {REBUILD}."
        )
    try:
        status = (folder / name).lstat()
    except OSError as error:
        raise _unreadable(name, error.strerror) from error
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(name, "it is a link, a folder or a device, not a regular file")
    most = _MOST_OTHER
    if name.endswith((".onnx", ".onnx" + DATA_SUFFIX)):
        most = _MOST_GRAPH if name.endswith(".onnx") else _MOST_WEIGHTS
    if status.st_size > most:
        raise _unreadable(name, f"it has {status.st_size:,} bytes, over the limit of {most:,}")


def _verify(folder: Path, name: str, digest: str) -> None:
    """Refuse a file that cannot be read, or with another hash."""
    try:
        found = sha256(folder / name)
    except OSError as error:
        raise _unreadable(name, error.strerror) from error
    if found != digest:
        raise BundleError(
            f"The bundle's file {name} was truncated or altered (its sha256 is not the "
            f"manifest's): copy the whole folder again, or {REBUILD}."
        )


def _unreadable(name: str, reason: str | None) -> BundleError:
    return BundleError(
        f"The bundle's file {name} cannot be read ({reason}): copy the whole folder "
        f"again, or {REBUILD}."
    )
