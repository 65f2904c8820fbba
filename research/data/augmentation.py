"""Optional changes to training pictures: flips, quarter turns, colour jitter.

The paper uses none. They act on the square picture the model sees, after preprocessing, so that
picture and mask stay one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

AUGMENTATIONS = ("flip", "rotate", "colour")
JITTER = 0.2  # brightness, contrast and saturation change by up to this share


def augment(
    image: Tensor, mask: Tensor, kinds: Sequence[str], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Image uint8 [S,S,3] and mask [S,S], changed alike as the generator says.

    "flip": left-right and up-down, each for half of the pictures; "rotate": by a multiple of 90
    degrees; "colour": brightness, contrast and saturation of the image alone.
    """
    if "flip" in kinds:
        axes = [axis for axis in (0, 1) if rng.random() < 0.5]
        image, mask = image.flip(axes), mask.flip(axes)
    if "rotate" in kinds:
        turns = int(rng.integers(4))
        image, mask = image.rot90(turns, (0, 1)), mask.rot90(turns, (0, 1))
    if "colour" in kinds:
        image = _jitter(image, rng)
    return image.contiguous(), mask.contiguous()


def _jitter(image: Tensor, rng: np.random.Generator) -> Tensor:
    brightness, contrast, saturation = (float(v) for v in 1 + rng.uniform(-JITTER, JITTER, 3))
    values = image.float() * brightness
    mean = values.mean()
    values = mean + (values - mean) * contrast
    gray = values.mean(dim=2, keepdim=True)
    return (gray + (values - gray) * saturation).round().clamp(0, 255).to(torch.uint8)
