"""Augmentations change picture and mask alike, by the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from clipsam.research.data.augmentation import AUGMENTATIONS, augment
from clipsam.research.data.items import Epochs, Item


def picture() -> tuple[torch.Tensor, torch.Tensor]:
    """A mask without any symmetry, and an image whose red channel is the mask."""
    mask = torch.zeros(8, 8)
    mask[1, 2:7] = 1
    mask[2:4, 2] = 1
    image = torch.full((8, 8, 3), 90, dtype=torch.uint8)
    image[..., 0] = (mask * 200).to(torch.uint8)
    return image, mask


@pytest.mark.parametrize(
    ("kinds", "ways"), [(["flip"], 4), (["rotate"], 4), (["flip", "rotate"], 8)]
)
def test_picture_and_mask_stay_one(kinds: list[str], ways: int) -> None:
    image, mask = picture()
    seen = set()
    for seed in range(60):
        changed, moved = augment(image, mask, kinds, np.random.default_rng(seed))
        torch.testing.assert_close((changed[..., 0] > 0).float(), moved)
        assert changed.dtype == torch.uint8
        seen.add(moved.numpy().tobytes())
    assert len(seen) == ways


def test_colour_changes_the_image_alone() -> None:
    image, mask = picture()
    changed, moved = augment(image, mask, ["colour"], np.random.default_rng(1))
    torch.testing.assert_close(moved, mask)
    assert not torch.equal(changed, image)
    assert (changed.float() - image.float()).abs().max() < 90


class One(Dataset[Item]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Item:
        return (*picture(), str(index), "")


def test_every_epoch_draws_anew_and_the_seed_decides() -> None:
    first, again = (Epochs(One(), 5, 20, AUGMENTATIONS) for _ in range(2))
    drawn = [first[i][0] for i in range(60)]
    for i in range(60):
        torch.testing.assert_close(drawn[i], again[i][0], rtol=0, atol=0)
    assert len({d.numpy().tobytes() for d in drawn}) > 50
    plain = Epochs(One(), 5, 2)
    assert all(torch.equal(plain[i][0], picture()[0]) for i in range(6))
    assert sorted(plain[i][2] for i in range(3)) == ["0", "1", "2"]
