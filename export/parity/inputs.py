"""What the parity checks are run on: noise, procedural pictures, and prompts of every count.

Images carry no texture that a model knows; the point is numbers of every size in every place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipsam.research.synthetic.sample import sample_from_seed
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.preprocess import clip_input, sam_input

PROMPT_COUNTS = (1, 2, 5, 16)

# (height, width) of the varied images: square, wide, tall, tiny, large.
_SHAPES = (
    (192, 192), (120, 400), (500, 90), (40, 56), (700, 900), (256, 255), (64, 700), (333, 17),
)  # fmt: skip


@dataclass(frozen=True)
class GraphCase:
    """One input of a graph: tensors by name, in the order of `forward`."""

    name: str
    feeds: dict[str, Tensor]


def varied_images(count: int, seed: int = 1) -> Iterator[tuple[str, Image]]:
    """`count` named images HxWx3 uint8: gray and colour, square, wide, tall, tiny and large."""
    for i in range(count):
        height, width = _SHAPES[i % len(_SHAPES)]
        image = sample_from_seed(seed + i, 192, defect_rate=1.0).image
        if gray := i % 3 == 1:
            image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        yield f"{'gray' if gray else 'colour'} {width}x{height}", np.asarray(resized, np.uint8)


def clip_umci_cases(size: int, text: NDArray[np.float32]) -> Iterator[GraphCase]:
    """Batches of 1 and 3; `text` [K,C_t,2] is cycled through."""
    rng = np.random.default_rng(0)
    images = [clip_input(image, size)[0] for _, image in varied_images(3)]
    noise = rng.integers(0, 256, (1, size, size, 3), np.uint8)
    for name, batch in (
        ("noise", noise),
        ("picture", np.stack(images[:1])),
        ("3 pictures", np.stack(images)),
    ):
        features = text[np.arange(len(batch)) % len(text)]
        yield GraphCase(
            name, {"image": torch.from_numpy(batch), "text": torch.from_numpy(features)}
        )


def image_cases(
    name: str, images: Iterable[tuple[str, Image]], size: int, text: NDArray[np.float32]
) -> Iterator[GraphCase]:
    """Named images as inputs of the graph called `name` (one that takes images), one a case.

    `size` is the side of the graph's image in pixels; `text` [K,C_t,2] is cycled through.
    """
    for i, (label, image) in enumerate(images):
        if name == "clip_umci":
            feeds = {"image": clip_input(image, size), "text": text[i % len(text)][None]}
        else:
            frame, valid = sam_input(image, Geometry(image.shape[0], image.shape[1], size))
            feeds = {"image": frame, "valid_size": valid}
        yield GraphCase(label, {key: torch.from_numpy(value) for key, value in feeds.items()})


def sam_encoder_cases(size: int) -> Iterator[GraphCase]:
    """Noise over the whole frame, and a wide picture with rubbish in the padding."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, size, size, 3), np.uint8)
    yield GraphCase(
        "noise", {"image": torch.from_numpy(noise), "valid_size": torch.tensor([size, size])}
    )
    _, wide = list(varied_images(2))[1]
    frame, valid = sam_input(wide, Geometry(wide.shape[0], wide.shape[1], size))
    frame[:, valid[0] :] = noise[:, valid[0] :]
    yield GraphCase(
        "padded picture", {"image": torch.from_numpy(frame), "valid_size": torch.from_numpy(valid)}
    )


def sam_decoder_cases(size: int, channels: int) -> Iterator[GraphCase]:
    """Prompts of every count on embeddings that are normal noise, as SAM's last layer leaves them;
    the last case mixes all labels."""
    generator = torch.Generator().manual_seed(0)
    grid = size // 16
    for number, count in enumerate((*PROMPT_COUNTS, PROMPT_COUNTS[1])):
        mixed = number == len(PROMPT_COUNTS)
        points = 5 + number % 2
        coords = torch.rand((count, points + 2, 2), generator=generator) * (size - 1)
        labels = torch.ones(count, points + 2)
        if mixed:
            labels[:, :points] = torch.arange(points) % 3 - 1.0  # -1, 0, 1
        labels[:, points:] = torch.tensor([2.0, 3.0])
        yield GraphCase(
            f"{count} prompts, mixed labels" if mixed else f"{count} prompts",
            {
                "embedding": torch.randn((1, channels, grid, grid), generator=generator),
                "point_coords": coords,
                "point_labels": labels,
            },
        )
