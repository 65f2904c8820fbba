"""What UMCI is trained on, item by item: procedural pictures, or the images of a data set."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipsam.research.data.augmentation import augment
from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.wording import PLAIN, draw_wording
from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.stages.preprocess import clip_input

# image uint8 [S,S,3] or cached CLIP features float16 [taps,H,W,C]; mask [S,S] of 0 and 1;
# category; wording (see `wording`)
Item = tuple[Tensor, Tensor, str, str]
# the same of B items: [B,S,S,3] or [B,taps,H,W,C]; [B,S,S]; B words each
Batch = tuple[Tensor, Tensor, list[str], list[str]]


class SyntheticImages(Dataset[Item]):
    """Item i is the procedural sample `seed + i`, a share of them `fine`; never repeats."""

    def __init__(self, size: int, seed: int, length: int, fine: float = 0) -> None:
        self.size, self.seed, self.length, self.fine = size, seed, length, fine

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        sample = sample_from_seed(self.seed + index, self.size, fine=self.fine)
        mask = torch.from_numpy(sample.mask.astype(np.float32))
        return torch.from_numpy(sample.image), mask, sample.category, PLAIN


class LabelledImages(Dataset[Item]):
    """The images of a data set in their order, as the model sees them, and of them what `view`
    leaves; a defect where nothing counts has no label."""

    def __init__(
        self, images: Sequence[LabelledImage], size: int, view: InspectOptions | None = None
    ) -> None:
        self.images, self.size, self.view = images, size, view or InspectOptions()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        item = self.images[index]
        image, mask = item.load()
        area = self.view.area(image)
        image, mask = self.view.crop(image), self.view.crop(mask if area is None else mask & area)
        small = cv2.resize(
            mask.astype(np.float32), (self.size, self.size), interpolation=cv2.INTER_AREA
        )
        # The runtime's own preprocessing: a model must see on the box what it was trained on.
        pixels = torch.from_numpy(clip_input(image, self.size)[0])
        return pixels, torch.from_numpy((small > 0.5).astype(np.float32)), item.category, PLAIN


class Epochs(Dataset[Item]):
    """A data set over and over, shuffled anew each epoch by the seed alone.

    `augmentations` (see `augmentation`) are drawn anew for every item of every epoch.
    """

    def __init__(
        self, base: Dataset[Item], seed: int, epochs: int, augmentations: Sequence[str] = ()
    ) -> None:
        self.base, self.seed, self.epochs = base, seed, epochs
        self.augmentations = tuple(augmentations)

    def __len__(self) -> int:
        return self._images * self.epochs

    @property
    def _images(self) -> int:
        return len(cast(Sized, self.base))

    def __getitem__(self, index: int) -> Item:
        epoch, place = divmod(index, self._images)
        order = np.random.default_rng([self.seed, epoch]).permutation(self._images)
        image, mask, category, wording = self.base[int(order[place])]
        if self.augmentations:
            rng = np.random.default_rng([self.seed, index, 3])
            image, mask = augment(image, mask, self.augmentations, rng)
        return image, mask, category, wording


class Reworded(Dataset[Item]):
    """A data set in which a share of the items gets odd words (see `wording`), by the seed alone.

    The words belong to the place, not to the image: an image seen again gets others.
    """

    def __init__(self, base: Dataset[Item], seed: int, steering: float) -> None:
        self.base, self.seed, self.steering = base, seed, steering

    def __len__(self) -> int:
        return len(cast(Sized, self.base))

    def __getitem__(self, index: int) -> Item:
        image, mask, category, _ = self.base[index]
        rng = np.random.default_rng([self.seed, index, 2])
        return image, mask, category, draw_wording(rng, self.steering)


def epoch_ends(images: int, epochs: int, batch_size: int) -> tuple[int, ...]:
    """After how many steps each epoch has been seen whole; a batch may hold the end of one epoch
    and the start of the next, and what is left over at the very end is not a batch."""
    steps = images * epochs // batch_size
    ends = (-(-images * epoch // batch_size) for epoch in range(1, epochs + 1))
    return tuple(dict.fromkeys(min(end, steps) for end in ends))


def collate(items: list[Item]) -> Batch:
    """A batch of items (see `Batch`)."""
    images, masks, categories, wordings = zip(*items, strict=True)
    return torch.stack(images), torch.stack(masks), list(categories), list(wordings)
