"""The frozen CLIP's features of a data set on disk, so that later epochs cost only UMCI.

A cache is a folder named by its key, with

    features.npy   float16 [images, taps, H, W, C], read through a memory map
    masks.npy      uint8 [images, S, S], 0 and 1
    cache.json     format, key, what the key was made from, and how many images are done

The key is the sha256 of the CLIP weights' sha256, the image size, the taps, the form of the
preprocessing, and the bytes of every image and mask in their order: if any of these changes, it
is another cache. `cache.json` is replaced by renaming, after the images it counts are on disk, so
a cache that was being filled when the process was killed goes on from the last whole chunk. A lock
on the folder makes a second process wait for the first instead of filling it too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.file_lock import locked
from clipsam.research.data.items import Item, LabelledImages, collate
from clipsam.research.data.loader import make_loader
from clipsam.research.data.wording import PLAIN
from clipsam.runtime.core.errors import DatasetError, OutputError, WeightsError
from clipsam.runtime.core.files import sha256, write_bytes

Features: TypeAlias = "np.memmap[Any, np.dtype[np.float16]]"
Masks: TypeAlias = "np.memmap[Any, np.dtype[np.uint8]]"

FORMAT = 1  # of the files, and of the preprocessing that is in them
CHUNK = 8  # images computed at a time; a fixed number, so that resuming computes the same
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
            self._maps = _open(self.folder, "r")
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
    """The cache of `images` below `root`, filled first as far as it is not.

    `extract` maps images uint8 [B,S,S,3] to features [B,taps,H,W,C]. Raises DatasetError for a
    folder that is not this cache, OutputError if the disk is too small.
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
        done = _rows_done(folder, spec)
        if done == spec.images:
            print(f"CLIP features: {spec.images} images from the cache {folder}")
        else:
            _mention_others(root, folder)
            if done == 0:
                _create(folder, spec)
            print(
                f"CLIP features: computing {spec.images - done} of {spec.images} images into "
                f"{folder} ({spec.bytes / 1e9:.2f} GB)"
            )
            _fill(folder, spec, done, LabelledImages(images, spec.image_size), extract, workers)
    return CachedFeatures(folder, images)


def _rows_done(folder: Path, spec: CacheSpec) -> int:
    """How many images of this very cache are on disk; 0 if there is nothing yet."""
    path = folder / STATE
    if not path.exists():
        return 0
    advice = "delete that folder, choose another --cache_path, or train with --no_cache"
    try:
        state = json.loads(path.read_text())
        key, rows = str(state["key"]), int(state["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is damaged: {advice}.") from error
    if key != spec.key:
        raise DatasetError(
            f"{folder} is the feature cache of other CLIP weights, preprocessing or images: "
            f"{advice}."
        )
    try:
        features, masks = _open(folder, "r")
        shapes_fit = (
            features.shape == (spec.images, *spec.feature_shape)
            and masks.shape == (spec.images, spec.image_size, spec.image_size)
            and features.dtype == np.float16
            and masks.dtype == np.uint8
        )
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder} is damaged ({error}): {advice}.") from error
    if not shapes_fit or not 0 <= rows <= spec.images:
        raise DatasetError(f"{folder} is damaged (arrays of another shape): {advice}.")
    return rows


def _create(folder: Path, spec: CacheSpec) -> None:
    """Empty arrays with all their disk space reserved."""
    free = shutil.disk_usage(folder).free
    # What an earlier, killed creation left is written over.
    left = [folder / name for name in (FEATURES, MASKS) if (folder / name).exists()]
    free += sum(path.stat().st_blocks * 512 for path in left)
    if free < spec.bytes + RESERVE:
        raise OutputError(
            f"The feature cache needs {(spec.bytes + RESERVE) / 1e9:.2f} GB in {folder.parent}, "
            f"where {free / 1e9:.2f} GB are free: free some space, choose another --cache_path, "
            "or train with --no_cache."
        )
    size = spec.image_size
    for name, dtype, shape in (
        (FEATURES, np.float16, (spec.images, *spec.feature_shape)),
        (MASKS, np.uint8, (spec.images, size, size)),
    ):
        path = folder / name
        try:
            np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
            if hasattr(os, "posix_fallocate"):  # else a disk that fills up kills by SIGBUS
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OutputError(
                f"{path} could not be made ({error.strerror or error}): free some space, choose "
                "another --cache_path, or train with --no_cache."
            ) from error
    _write_state(folder, spec, 0)


def _fill(
    folder: Path,
    spec: CacheSpec,
    done: int,
    images: Dataset[Item],
    extract: Callable[[Tensor], Tensor],
    workers: int,
) -> None:
    features, masks = _open(folder, "r+")
    loader = make_loader(Subset(images, range(done, spec.images)), CHUNK, workers, collate)
    with tqdm(total=spec.images, initial=done, unit="image", mininterval=2) as bar:
        for pixels, targets, _, _ in loader:
            computed = extract(pixels).half().cpu().numpy()
            if not np.isfinite(computed).all():
                raise WeightsError(
                    f"CLIP's features of images {done} to {done + len(pixels) - 1} exceed float16: "
                    "check --clip_weights, or train with --no_cache."
                )
            features[done : done + len(pixels)] = computed
            masks[done : done + len(pixels)] = targets.numpy().astype(np.uint8)
            done += len(pixels)
            features.flush()
            masks.flush()
            _write_state(folder, spec, done)
            bar.update(len(pixels))


def _write_state(folder: Path, spec: CacheSpec, rows: int) -> None:
    state = {"key": spec.key, "rows": rows, **asdict(spec)}
    write_bytes(folder / STATE, json.dumps(state, indent=1).encode())


def _open(folder: Path, mode: Literal["r", "r+"]) -> tuple[Features, Masks]:
    """The two arrays as memory maps."""
    arrays = [np.lib.format.open_memmap(folder / name, mode) for name in (FEATURES, MASKS)]
    return arrays[0], arrays[1]


def _mention_others(root: Path, folder: Path) -> None:
    others = [path.parent for path in root.glob(f"*/{STATE}") if path.parent != folder]
    if others:
        size = sum(file.stat().st_size for path in others for file in path.glob("*.npy"))
        print(
            f"CLIP features: {root} also holds {len(others)} caches of other weights, sizes or "
            f"images ({size / 1e9:.2f} GB); delete what you no longer need."
        )
