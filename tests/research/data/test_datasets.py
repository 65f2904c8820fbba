"""Folders in MVTec AD's layout, the synthetic set, and training on a folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.dataset_folders import find_dataset

from clipsam.research.data.datasets import synthetic_dataset
from clipsam.research.data.selection import select_items
from clipsam.research.models.checkpoints import load_umci
from clipsam.research.models.presets import PRESETS
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.research.train import main as train
from clipsam.runtime.core.errors import DatasetError


def write(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def category(tmp_path: Path) -> Path:
    root = tmp_path / "metal_nut"
    image = np.full((40, 60, 3), 90, np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[5:9, 10:20] = 1  # masks of 0 and 1 exist too: anything above 0 counts
    write(root / "test" / "good" / "000.png", image)
    write(root / "test" / "bent" / "000.png", image)
    write(root / "ground_truth" / "bent" / "000_mask.png", mask)
    return root


def test_an_mvtec_folder_gives_images_and_masks(category: Path) -> None:
    bent, good = find_dataset(category, "nut")
    assert (bent.name, bent.defect, bent.category) == ("bent/000.png", "bent", "nut")
    image, mask = bent.load()
    assert image.shape == (40, 60, 3)
    assert mask.sum() == 40
    assert mask[5, 10]
    assert not good.load()[1].any()


def test_a_category_opens_as_a_folder_of_categories_does(category: Path) -> None:
    assert [item.category for item in find_dataset(category)] == ["metal nut"] * 2
    assert len(find_dataset(category.parent)) == 2
    assert find_dataset(category, "thing")[0].category == "thing"


def test_a_missing_mask_is_named(category: Path) -> None:
    (category / "ground_truth" / "bent" / "000_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"bent/000\.png has no mask .*000_mask\.png"):
        find_dataset(category, "nut")


def test_a_mask_of_another_size_is_named(category: Path) -> None:
    write(category / "ground_truth" / "bent" / "000_mask.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(DatasetError, match="is 6x4, its image is 60x40"):
        find_dataset(category, "nut")[0].load()


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_images_is_refused(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "test" / "good").mkdir(parents=True)
    with pytest.raises(DatasetError, match="test"):
        find_dataset(tmp_path)


def test_the_synthetic_set_is_the_same_every_time() -> None:
    first, again = synthetic_dataset(6, 96), synthetic_dataset(6, 96)
    assert first == again
    for a, b in zip(first, again, strict=True):
        (image, mask), (image_2, mask_2) = a.load(), b.load()
        np.testing.assert_array_equal(image, image_2)
        np.testing.assert_array_equal(mask, mask_2)
        assert mask.any() == (a.defect != "good")


def test_fine_pictures_are_a_set_of_their_own() -> None:
    fine = select_items("synthetic-fine", None, 6, 96, None)
    assert [item.seed for item in fine] == [item.seed for item in synthetic_dataset(6, 96)]
    for item in fine:
        image, mask = item.load()
        sample = sample_from_seed(item.seed, 96, fine=1)
        np.testing.assert_array_equal(image, sample.image)
        np.testing.assert_array_equal(mask, sample.mask > 0)
        np.testing.assert_array_equal(image, item.load_image())
    halves = [item.load()[0] for item in synthetic_dataset(12, 96, fine=0.5)]
    others = [sample_from_seed(item.seed, 96).image for item in synthetic_dataset(12, 96)]
    same = [np.array_equal(*pair) for pair in zip(halves, others, strict=True)]
    assert 0 < sum(same) < 12


@pytest.mark.slow  # trains
def test_training_on_a_folder_gives_weights_that_load(
    category: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = category.parent / "run"
    arguments = ["--preset", "tiny", "--data_path", str(category), "--save_path", str(saved)]
    few = ["--validation_images", "4", "--workers", "0", "--device", "cpu"]
    assert train([*arguments, *few, "--epoch", "1", "--batch_size", "8"]) == 1
    assert "gives 2 images in 1 epochs, fewer than one batch of 8" in capsys.readouterr().err
    assert train([*arguments, *few, "--epoch", "2", "--batch_size", "2", "--paths", "strip"]) == 0
    model, _ = load_umci(PRESETS["tiny"], saved / "umci.safetensors")
    assert model.config.paths == ("strip",)


def test_training_without_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        train(["--save_path", str(tmp_path)])
    assert caught.value.code == 2
