"""Stage two: SAM redraws the defect's edge (Sec. 3.3, Eq. 8).

The expensive `encode` is apart from the cheap `decode`, and all prompts of an image go through the
decoder in one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Session, check_finite
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.mask_upscale import MaskWindow, upscale_mask
from clipsam.runtime.stages.preprocess import sam_input
from clipsam.runtime.stages.prompts import Prompts


@dataclass(frozen=True)
class Embedding:
    """SAM's view of one image: float32 [1,C,h,w], and where the image lies in it."""

    values: NDArray[np.float32]
    geometry: Geometry


@dataclass(frozen=True)
class Masks:
    """What the decoder said: q prompts x 3 masks, as logits in SAM's low-resolution frame."""

    logits: NDArray[np.float32]  # [q,3,D/4,D/4]
    scores: NDArray[np.float32]  # [q,3] predicted IoU
    geometry: Geometry

    def windows(self) -> Iterator[tuple[MaskWindow, float]]:
        """Every mask that is not empty, as the window of the image it lies in, with its score.

        Prompts in order, then masks. SAM's two-step bilinear resize (to its input's size, cropped
        to the image, to the image's size); a pixel is in the mask where that is positive. One at
        a time: 48 masks of a large image do not fit in memory.
        """
        flat = self.logits.reshape(-1, *self.logits.shape[2:])
        for logits, score in zip(flat, self.scores.ravel(), strict=True):
            window = upscale_mask(logits, self.geometry)
            if window is not None:
                yield window, float(score)

    def binary(self) -> Iterator[tuple[NDArray[np.bool_], float]]:
        """Every mask at image size, bool [H,W], with its score: `windows` with what is around."""
        flat = self.logits.reshape(-1, *self.logits.shape[2:])
        for logits, score in zip(flat, self.scores.ravel(), strict=True):
            mask = np.zeros((self.geometry.height, self.geometry.width), np.bool_)
            window = upscale_mask(logits, self.geometry)
            if window is not None:
                mask[window.rows, window.columns] = window.logits > 0
            yield mask, float(score)


class Segmenter:
    """SAM's image encoder and mask decoder as two sessions."""

    def __init__(self, encoder: Session, decoder: Session) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.image_size = int(encoder.inputs["image"].shape[1])

    def encode(self, image: Image) -> Embedding:
        """HxWx3 uint8 RGB -> its embedding; the expensive part, once an image."""
        geometry = Geometry(image.shape[0], image.shape[1], self.image_size)
        padded, valid_size = sam_input(image, geometry)
        outputs = self.encoder.run({"image": padded, "valid_size": valid_size})
        return Embedding(outputs["embedding"], geometry)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """Three masks and scores for every prompt, in one decoder call (Eq. 8)."""
        outputs = self.decoder.run(
            {
                "embedding": embedding.values,
                "point_coords": embedding.geometry.to_sam(prompts.coordinates()),
                "point_labels": prompts.labels(),
            }
        )
        check_finite(outputs, "logits", "scores")
        return Masks(outputs["logits"], outputs["scores"], embedding.geometry)
