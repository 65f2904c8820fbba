"""The feature cache: what is in it, what makes it another one, and that a torn one is not used."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.dataset_folders import find_dataset
from support.training_files import write_dataset
from torch import Tensor

from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.feature_cache import (
    CHUNK,
    CachedFeatures,
    CacheSpec,
    cached_features,
    images_digest,
)
from clipsam.research.data.items import LabelledImages
from clipsam.runtime.core.errors import OutputError, WeightsError

SIZE, SHAPE = 32, (2, 4, 4, 3)  # (taps, H, W, C)
COUNT = CHUNK * 2 + 3


def extract(images: Tensor) -> Tensor:
    """Stands in for CLIP: block means of the pixels, twice, so that content can be compared."""
    means = images.float().unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean(dim=(2, 4)) / 255
    return torch.stack([means, means**2], dim=1)


class Extract:
    """Counts its images; raises like a killed run after `stop` calls."""

    def __init__(self, stop: int | None = None) -> None:
        self.images, self.calls, self.stop = 0, 0, stop

    def __call__(self, images: Tensor) -> Tensor:
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        self.images += len(images)
        return extract(images)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), "mvtec", COUNT)


@pytest.fixture
def images(data: Path) -> list[LabelledImage]:
    return find_dataset(data)


def spec_of(images: list[LabelledImage]) -> CacheSpec:
    return CacheSpec("net", "a" * 64, SIZE, (1, 2), SHAPE, len(images), images_digest(images))


def fill(
    root: Path, images: list[LabelledImage], function: Callable[[Tensor], Tensor]
) -> CachedFeatures:
    return cached_features(root, spec_of(images), images, function)


def test_it_holds_what_would_be_computed(tmp_path: Path, images: list[LabelledImage]) -> None:
    cache = fill(tmp_path, images, extract)
    plain = LabelledImages(images, SIZE)
    assert len(cache) == len(plain) == COUNT
    for i in (0, CHUNK, COUNT - 1):
        pixels, mask, category, wording = plain[i]
        features, cached_mask, *words = cache[i]
        assert features.dtype == torch.float16
        torch.testing.assert_close(features.float(), extract(pixels[None])[0], rtol=1e-3, atol=0)
        torch.testing.assert_close(cached_mask, mask)
        assert words == [category, wording]
    assert any(cache[i][1].any() for i in range(COUNT))


def test_the_second_time_nothing_is_computed(tmp_path: Path, images: list[LabelledImage]) -> None:
    first = fill(tmp_path, images, extract)
    counter = Extract()
    second = fill(tmp_path, images, counter)
    assert counter.calls == 0
    torch.testing.assert_close(first[3][0], second[3][0], rtol=0, atol=0)


def test_a_worker_opens_its_own_map(tmp_path: Path, images: list[LabelledImage]) -> None:
    cache = fill(tmp_path, images, extract)
    before = cache[0][0]
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 10_000  # the arrays do not travel
    torch.testing.assert_close(copy[0][0], before)


def test_a_killed_filling_is_computed_again(tmp_path: Path, images: list[LabelledImage]) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "a", images, Extract(stop=1))
    counter = Extract()
    again = fill(tmp_path / "a", images, counter)
    assert counter.images == COUNT
    whole = fill(tmp_path / "b", images, extract)
    for name in ("features.npy", "masks.npy"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_what_makes_it_another_cache(data: Path, images: list[LabelledImage]) -> None:
    spec = spec_of(images)
    others = [
        replace(spec, clip_name="other"),
        replace(spec, clip_sha256="b" * 64),
        replace(spec, image_size=64),
        replace(spec, features_list=(2, 3)),
        replace(spec, format=spec.format + 1),
        replace(spec, images_sha256=images_digest(images[::-1])),
        replace(spec, images_sha256=images_digest([replace(images[0], mask_above=127)])),
    ]
    assert len({spec.key, *(other.key for other in others)}) == 1 + len(others)


def test_a_changed_image_or_mask_is_noticed_a_moved_folder_is_not(
    tmp_path: Path, data: Path, images: list[LabelledImage]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    assert images_digest(find_dataset(moved, "other word")) == images_digest(images)
    item = next(item for item in find_dataset(moved) if item.mask_path)
    for path in (item.image_path, item.mask_path):
        assert path is not None
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + b"x")
        assert images_digest(find_dataset(moved)) != images_digest(images)
        path.write_bytes(kept)
    assert images_digest(find_dataset(moved)) == images_digest(images)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cache.json", lambda path: path.write_text('{"key": "0"}')),
        ("cache.json", lambda path: path.write_text("{")),
        ("cache.json", lambda path: path.unlink()),
        ("features.npy", _cut),
        ("features.npy", lambda path: path.write_bytes(b"\x93NUM")),
        ("features.npy", lambda path: np.save(path, np.zeros((COUNT, 1), np.float16))),
        ("masks.npy", lambda path: path.unlink()),
    ],
    ids=["foreign", "torn json", "no json", "cut", "torn header", "other shape", "no masks"],
)
def test_a_foreign_or_damaged_cache_is_computed_again(
    name: str, damage: Callable[[Path], Any], tmp_path: Path, images: list[LabelledImage]
) -> None:
    cache = fill(tmp_path, images, extract)
    whole = [(cache.folder / array).read_bytes() for array in ("features.npy", "masks.npy")]
    damage(cache.folder / name)
    counter = Extract()
    fill(tmp_path, images, counter)
    assert counter.images == COUNT
    assert [(cache.folder / n).read_bytes() for n in ("features.npy", "masks.npy")] == whole


def test_a_disk_too_small_for_the_cache_is_refused(
    tmp_path: Path, images: list[LabelledImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1000))
    with pytest.raises(OutputError, match=r"needs 0\.27 GB in .* or train with --no_cache"):
        fill(tmp_path, images, extract)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_path_that_cannot_be_a_folder(tmp_path: Path, images: list[LabelledImage]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another --cache_path"):
        fill(tmp_path / "file", images, extract)


def test_features_beyond_float16_are_refused(tmp_path: Path, images: list[LabelledImage]) -> None:
    with pytest.raises(WeightsError, match=r"exceed float16.*--no_cache"):
        fill(tmp_path, images, lambda pixels: extract(pixels) * 1e6)
    counter = Extract()
    fill(tmp_path, images, counter)
    assert counter.images == COUNT  # the bad ones were not counted as done


HOLDER = """
import time
from pathlib import Path
from clipsam.research.data.file_lock import locked
with locked(Path("lock"), lambda: None):
    Path("held").touch()
    time.sleep(1)
"""


def test_a_second_process_waits(
    tmp_path: Path, images: list[LabelledImage], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / spec_of(images).key[:16]
    folder.mkdir()
    # Not multiprocessing, which would import this file, and torch with it.
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=folder)
    while not (folder / "held").exists():
        time.sleep(0.01)
    fill(tmp_path, images, extract)
    assert "waiting for the process" in capsys.readouterr().out
    assert holder.wait() == 0
