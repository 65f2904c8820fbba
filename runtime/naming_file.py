"""`naming.npz` of a bundle: the words for regions, where they lie, and the head that names regions.

    words [K], features float32 [K,C_t]
    token_0 float32 [inputs,outputs], token_0_bias [outputs], token_1, …; pooled_0, …;
    closeup_0, … of a head that looks at pixels
    unknown float32 [C_t], numbers float32 [2]: margin and scale

A bundle without the file names no regions. As of `text_features.npz`, no array is unpacked before
its size was checked.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import BundleError
from clipsam.runtime.core.files import open_regular
from clipsam.runtime.manifest import MOST_LETTERS, REBUILD, Manifest
from clipsam.runtime.stages.closeup import CHANNELS, MOST_HALVINGS, keeps_channels
from clipsam.runtime.stages.naming import PLACE, SHAPE, UNKNOWN, Layers, Namer, NamingHead
from clipsam.runtime.text_features import read_array

NAMING = "naming.npz"
MOST_WORDS = 1000
_MOST_LAYERS, _MOST_ARRAY = 8, 64 << 20


def write_naming(
    path: Path, words: Sequence[str], features: NDArray[np.float32], head: NamingHead
) -> None:
    """Write `naming.npz`: features [K,C_t] of K words, and the head."""
    arrays = {"words": np.array(words), "features": features, "unknown": head.unknown}
    for name, layers in (
        ("token", head.token), ("pooled", head.pooled), ("closeup", head.closeup)
    ):  # fmt: skip
        for number, (weight, bias) in enumerate(layers):
            arrays |= {f"{name}_{number}": weight, f"{name}_{number}_bias": bias}
    arrays["numbers"] = np.array([head.margin, head.scale])
    kept = {k: v if k == "words" else np.asarray(v, np.float32) for k, v in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **kept)


def read_naming(path: Path, manifest: Manifest) -> Namer:
    """What names the regions of this bundle. Raises BundleError."""
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            return _read(archive, manifest)
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        reason = str(error) or type(error).__name__
        raise BundleError(f"{path.name} cannot be read ({reason}): {REBUILD}.") from error


def _read(archive: zipfile.ZipFile, manifest: Manifest) -> Namer:
    words = read_array(archive, "words.npy", 4 * MOST_WORDS * MOST_LETTERS).tolist()
    text, tokens = manifest.text_size, manifest.graphs["clip_umci"].output("tokens").shape
    if not 0 < len(words) <= MOST_WORDS or len(set(words)) < len(words) or UNKNOWN in words:
        raise ValueError(f"{len(words)} words, or one of them twice")
    for word in words:
        if not isinstance(word, str) or not word.isprintable() or not word:
            raise ValueError(f"{word!r:.50} is no word")
    features = _floats(archive, "features", (len(words), text))
    side, width = _grid(tokens)
    token = _layers(archive, "token", width, optional_extra=PLACE)
    pooled: Layers = ()
    closeup: Layers = ()
    if "pooled_0.npy" in archive.namelist():
        pooled_inputs = 2 * width + 3 * token[-1][1].shape[0] + SHAPE
        if "closeup_0.npy" in archive.namelist():
            closeup = _layers(archive, "closeup", CHANNELS, window=9)
            if sum(not keeps_channels(layer) for layer in closeup[1:]) > MOST_HALVINGS:
                raise ValueError(f"its close-ups are halved more than {MOST_HALVINGS} times")
            pooled_inputs += 2 * closeup[-1][1].shape[0]
        pooled = _layers(archive, "pooled", pooled_inputs)
    if len(token[0][0]) != width + (PLACE if pooled else 0):
        raise ValueError(f"its first layer takes {len(token[0][0])} numbers a token")
    if (pooled or token)[-1][1].shape != (text,):
        raise ValueError("its last layer does not end in the text's space")
    margin, scale = _floats(archive, "numbers", (2,)).tolist()
    if not 0 < scale <= 1000:
        raise ValueError(f"its scale is {scale}")
    head = NamingHead(token, pooled, _floats(archive, "unknown", (text,)), margin, scale, closeup)
    return Namer(tuple(words), features, head, side)


def _grid(shape: Sequence[int | str]) -> tuple[int, int]:
    """Tokens a side, and their width, of the graph's tokens [batch,N,C]."""
    _, count, width = shape
    side = round(int(count) ** 0.5)
    if side * side != count:
        raise ValueError(f"{count} tokens are no square")
    return side, int(width)


def _layers(
    archive: zipfile.ZipFile, name: str, inputs: int, optional_extra: int = 0, window: int = 1
) -> Layers:
    layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    names = set(archive.namelist())
    for number in itertools.count():
        if f"{name}_{number}.npy" not in names or number == _MOST_LAYERS:
            break
        weight = _floats(archive, f"{name}_{number}")
        known = {window * inputs}
        if number == 0:
            known.add(window * inputs + optional_extra)
        if weight.ndim != 2 or len(weight) not in known:
            raise ValueError(f"{name}_{number} is float32{list(weight.shape)}")
        inputs = weight.shape[1]
        layers.append((weight, _floats(archive, f"{name}_{number}_bias", (inputs,))))
    if not layers:
        raise ValueError(f"it has no layer {name}_0")
    return layers


def _floats(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.float32]:
    array = read_array(archive, f"{name}.npy", _MOST_ARRAY)
    if array.dtype != np.float32 or (shape is not None and array.shape != shape):
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not all finite")
    return array
