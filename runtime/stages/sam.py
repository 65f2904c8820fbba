"""Stage two: SAM redraws the defect's edge (Sec. 3.3, Eq. 8).

The expensive `encode` is apart from the cheap `decode`, and all prompts of an image go through the
decoder in one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Array, DeviceArray, Feeds, Session, check_finite
from clipsam.runtime.backends.providers import PROVIDERS
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.ops.mask_upscale import MaskWindow, upscale_mask
from clipsam.runtime.stages.preprocess import sam_input
from clipsam.runtime.stages.prompt_buckets import BUCKETS, bucket, calls
from clipsam.runtime.stages.prompts import Prompts


@dataclass(frozen=True)
class Embedding:
    """SAM's view of one image: float32 [1,C,h,w], and where the image lies in it.

    The values stay on the device where encoder and decoder are on one: nobody else reads them.
    """

    values: NDArray[np.float32] | DeviceArray
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
        self.pads = decoder.provider in PROVIDERS and PROVIDERS[decoder.provider].prepares_shapes
        self.image_size = int(encoder.inputs["image"].shape[1])
        together = encoder.provider == decoder.provider
        self._one_device = together and encoder.keeps and decoder.keeps

    def encode(self, image: Image, frame: Array | DeviceArray | None = None) -> Embedding:
        """HxWx3 uint8 RGB -> its embedding; the expensive part, once an image.

        `frame` is SAM's input of it, uint8 [1,D,D,3], where it was made already.
        """
        geometry = Geometry(image.shape[0], image.shape[1], self.image_size)
        valid_size = np.array(geometry.sam_shape, np.int64)
        if frame is None:
            frame, valid_size = sam_input(image, geometry)
        feeds: Feeds = {"image": frame, "valid_size": valid_size}
        encode = self.encoder.keep if self._one_device else self.encoder.run
        return Embedding(encode(feeds)["embedding"], geometry)

    def decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """Three masks and scores for every prompt, in one decoder call (Eq. 8).

        On a device that prepares every shape, see `prompt_buckets.py`.
        """
        coordinates = embedding.geometry.to_sam(prompts.coordinates())
        outputs = self._decode(embedding, coordinates, prompts.labels())
        check_finite(outputs, "logits", "scores")
        return Masks(outputs["logits"], outputs["scores"], embedding.geometry)

    def meet_every_count(self, embedding: Embedding, prompts: Prompts, most: int) -> None:
        """Run the decoder on every number of prompts that images of at most `most` will ask for.

        `prompts` holds one prompt or more. Does nothing where the device prepares no shapes.
        """
        coordinates = embedding.geometry.to_sam(prompts.coordinates())[:1]
        labels = prompts.labels()[:1]
        for count in BUCKETS if self.pads else ():
            if count <= bucket(most):
                self._decode(embedding, coordinates.repeat(count, 0), labels.repeat(count, 0))

    def _decode(
        self, embedding: Embedding, coordinates: NDArray[np.float32], labels: NDArray[np.float32]
    ) -> dict[str, Array]:
        """Coordinates [q,P,2] in SAM's frame and labels [q,P] -> the decoder's outputs."""
        count = len(labels)
        parts = []
        for part, size in calls(count) if self.pads else [(slice(count), count)]:
            padding = ((0, size - len(labels[part])), (0, 0))
            found = self.decoder.run(
                {
                    "embedding": embedding.values,
                    "point_coords": np.pad(coordinates[part], (*padding, (0, 0)), mode="edge"),
                    "point_labels": np.pad(labels[part], padding, mode="edge"),
                }
            )
            parts.append({name: array[: len(labels[part])] for name, array in found.items()})
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
