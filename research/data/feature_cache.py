"""The frozen CLIP's features of a data set on disk, so that later epochs cost only UMCI.

A cache is a folder named by its key, with

    features.npy   float16 [images, taps, H, W, C], read through a memory map
    masks.npy      uint8 [images, S, S], 0 and 1
    cache.json     the key and what it was made from

The key is the sha256 of the CLIP weights' sha256, the image size, the taps, the form of the
preprocessing, and the bytes of every image and mask in their order: if any of these changes, it
is another cache. `cache.json` is written last: a folder without it, or with arrays of another
shape, is filled again. A lock on the folder makes a second process wait for the first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.file_lock import locked
from clipsam.research.data.items import Item, LabelledImages, collate
from clipsam.research.data.loader import make_loader
from clipsam.research.data.wording import PLAIN
from clipsam.runtime.core.errors import OutputError, WeightsError
from clipsam.runtime.core.files import sha256, write_bytes

Features: TypeAlias = "np.memmap[Any, np.dtype[np.float16]]"
Masks: TypeAlias = "np.memmap[Any, np.dtype[np.uint8]]"

FORMAT = 1  # of the files, and of the preprocessing that is in them
CHUNK = 8  # images computed at a time
RESERVE = 1 << 28  # bytes of disk left free
FEATURES, MASKS, STATE, LOCK = "features.npy", "masks.npy", "cache.json", "lock"


@dataclass(frozen=True)
class CacheSpec:
    """Everything a cache's content depends on."""

    clip_name: str  # which network the weights are put into
    clip_sha256: str
    image_size: int  # S
    features_list: tuple[int, ...]  # taps
    feature_shape: tuple[int, int, int, int]  # (taps, H, W, C) of one image
    images: int
    images_sha256: str  # of every image's and mask's bytes, in their order
    format: int = FORMAT

    @property
    def key(self) -> str:
        """The cache's name: 64 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of the two arrays."""
        return self.images * (2 * int(np.prod(self.feature_shape)) + self.image_size**2)


def images_digest(images: Sequence[LabelledImage]) -> str:
    """sha256 over the content of every image and mask and over how they are read.

    Neither the folder's place nor the category's word matters: a data set may be moved.
    """
    with ThreadPoolExecutor(8) as pool:
        lines = pool.map(_image_digest, images)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _image_digest(image: LabelledImage) -> str:
    parts = []
    for field in fields(image):
        value = getattr(image, field.name)
        if field.name != "category":
            parts.append(f"{field.name}={sha256(value) if isinstance(value, Path) else value!r}")
    if image.image_path is None:  # the seed alone does not say which generator draws it
        pixels, mask = image.load()
        parts.append(hashlib.sha256(pixels.tobytes() + mask.tobytes()).hexdigest())
    return " ".join(parts)


class CachedFeatures(Dataset[Item]):
    """A complete cache as a data set; item i is image i's features, mask and category."""

    def __init__(self, folder: Path, images: Sequence[LabelledImage]) -> None:
        self.folder = folder
        self.categories = [image.category for image in images]
        self._maps: tuple[Features, Masks] | None = None

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Item:
        if self._maps is None:  # each worker opens its own
            self._maps = _open(self.folder)
        features, masks = self._maps
        mask = torch.from_numpy(masks[index].astype(np.float32))
        return torch.from_numpy(np.array(features[index])), mask, self.categories[index], PLAIN

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}


def cached_features(
    root: Path,
    spec: CacheSpec,
    images: Sequence[LabelledImage],
    extract: Callable[[Tensor], Tensor],
    workers: int = 0,
) -> CachedFeatures:
    """The cache of `images` below `root`, computed first unless it is there.

    `extract` maps images uint8 [B,S,S,3] to features [B,taps,H,W,C]. Raises OutputError if the
    folder cannot be written or its disk is too small, WeightsError for features beyond float16.
    """
    folder = root / spec.key[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} could not be made ({error.strerror or error}): choose another --cache_path."
        ) from error

    def waiting() -> None:
        print(f"CLIP features: waiting for the process that works on {folder}")

    with locked(folder / LOCK, waiting):
        if _complete(folder, spec):
            print(f"CLIP features: {spec.images} images from the cache {folder}")
        else:
            print(
                f"CLIP features: computing {spec.images} images into {folder} "
                f"({spec.bytes / 1e9:.2f} GB)"
            )
            for name in (STATE, FEATURES, MASKS):
                (folder / name).unlink(missing_ok=True)
            _check_space(folder, spec)
            try:
                _fill(folder, spec, LabelledImages(images, spec.image_size), extract, workers)
            except OSError as error:
                raise OutputError(
                    f"{folder} could not be filled ({error.strerror or error}): free some space, "
                    "choose another --cache_path, or train with --no_cache."
                ) from error
    return CachedFeatures(folder, images)


def _complete(folder: Path, spec: CacheSpec) -> bool:
    """Whether the folder holds all of this very cache."""
    try:
        key = json.loads((folder / STATE).read_text())["key"]
        features, masks = _open(folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError):  # absent or damaged
        return False
    size = spec.image_size
    return bool(
        key == spec.key
        and features.shape == (spec.images, *spec.feature_shape)
        and masks.shape == (spec.images, size, size)
        and features.dtype == np.float16
        and masks.dtype == np.uint8
    )


def _check_space(folder: Path, spec: CacheSpec) -> None:
    free = shutil.disk_usage(folder).free
    if free < spec.bytes + RESERVE:
        raise OutputError(
            f"The feature cache needs {(spec.bytes + RESERVE) / 1e9:.2f} GB in {folder.parent}, "
            f"where {free / 1e9:.2f} GB are free: free some space, choose another --cache_path, "
            "or train with --no_cache."
        )


def _fill(
    folder: Path,
    spec: CacheSpec,
    images: Dataset[Item],
    extract: Callable[[Tensor], Tensor],
    workers: int,
) -> None:
    done, size = 0, spec.image_size
    loader = make_loader(images, CHUNK, workers, collate)
    with (
        (folder / FEATURES).open("wb") as features,
        (folder / MASKS).open("wb") as masks,
        tqdm(total=spec.images, unit="image", mininterval=2) as bar,
    ):
        _npy_header(features, "<f2", (spec.images, *spec.feature_shape))
        _npy_header(masks, "|u1", (spec.images, size, size))
        for pixels, targets, _, _ in loader:
            computed = extract(pixels).half().cpu().numpy()
            if not np.isfinite(computed).all():
                raise WeightsError(
                    f"CLIP's features of images {done} to {done + len(pixels) - 1} exceed float16: "
                    "check --clip_weights, or train with --no_cache."
                )
            features.write(computed.tobytes())
            masks.write(targets.numpy().astype(np.uint8).tobytes())
            done += len(pixels)
            bar.update(len(pixels))
    state = {"key": spec.key, **asdict(spec)}
    write_bytes(folder / STATE, json.dumps(state, indent=1).encode())


def _npy_header(file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> None:
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _open(folder: Path) -> tuple[Features, Masks]:
    """The two arrays as read-only memory maps."""
    features, masks = (np.lib.format.open_memmap(folder / n, "r") for n in (FEATURES, MASKS))
    return features, masks
