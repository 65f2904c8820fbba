"""`text_features.npz`: what CLIP's text encoder said of every category, once, when exporting.

An archive may claim any size: its directory and its arrays' headers are compared with what the
manifest lets expect before anything is unpacked.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.core.errors import BundleError
from clipsam.runtime.core.files import open_regular
from clipsam.runtime.manifest import REBUILD, Manifest

TEXT_FEATURES = "text_features.npz"
_HEADERS = 4096  # bytes of an array's own header, at most


def write_text_features(
    path: Path, categories: tuple[str, ...], features: NDArray[np.float32]
) -> None:
    """Write `text_features.npz`: features float32 [K,C_t,2] of K categories."""
    with path.open("wb") as file:
        np.savez(file, categories=np.array(categories), features=features.astype(np.float32))


def read_text_features(path: Path, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """Category -> L float32 [C_t,2], as many as the manifest names. Raises BundleError."""
    categories, size = manifest.categories, manifest.text_size
    count, longest = len(categories), max(map(len, categories))
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            names = read_array(archive, "categories.npy", 4 * count * longest).tolist()
            features = read_array(archive, "features.npy", 4 * count * size * 2)
        if tuple(names) != categories:
            raise ValueError("its categories are not the manifest's")
        if features.dtype != np.float32 or features.shape != (count, size, 2):
            raise ValueError(
                f"its features are {features.dtype}{list(features.shape)} instead of "
                f"float32[{count},{size},2]"
            )
        if not np.isfinite(features).all():
            raise ValueError("its features are not all finite")
    except Exception as error:  # zipfile, zlib and NumPy each have their own for a damaged file
        reason = str(error) or type(error).__name__
        raise BundleError(f"{path.name} cannot be read ({reason}): {REBUILD}.") from error
    return {name: features[i] for i, name in enumerate(names)}


def read_array(archive: zipfile.ZipFile, name: str, expected: int) -> NDArray[Any]:
    """The array `name`, which takes about `expected` bytes."""
    info = archive.getinfo(name)
    if info.file_size > expected + _HEADERS:
        raise ValueError(f"{name} would take {info.file_size:,} bytes instead of {expected:,}")
    data = io.BytesIO(archive.read(info))  # never more than file_size
    if (version := np.lib.format.read_magic(data)) != (1, 0):
        raise ValueError(f"{name} has the NumPy format {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    # NumPy allocates what the header claims.
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{name} is cut off")
    data.seek(0)
    return np.asarray(np.lib.format.read_array(data, allow_pickle=False))
