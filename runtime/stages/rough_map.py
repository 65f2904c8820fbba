"""Stage one: CLIP and UMCI find the defect roughly (Sec. 3.2)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Session, check_finite
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.preprocess import clip_input


def rough_map(session: Session, image: Image, text: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rough anomaly map O_f float32 [H,W] in [0,1], in image coordinates.

    `image` is HxWx3 uint8 RGB, `text` the category's L [C_t,2]. The S x S map of the graph is
    brought to image size bilinearly with half-pixel centres.
    """
    small, _ = find_rough(session, clip_input(image, clip_size(session)), text[None])
    return at_image_size(small[0], image)


def clip_size(session: Session) -> int:
    """S, the side of CLIP's input."""
    return int(session.inputs["image"].shape[1])


def find_rough(
    session: Session, inputs: Image, texts: NDArray[np.float32], compare: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float16] | None]:
    """B images at once: uint8 [B,S,S,3] of `clip_input` and texts [B,C_t,2] -> maps [B,S,S].

    With `compare` also the tokens float16 [B,N,C] by which parts are compared with good ones; else
    None, and nothing is copied.
    """
    wanted = ("rough", "tokens") if compare else ("rough",)
    found = session.run({"image": inputs, "text": texts}, wanted)
    return found["rough"], found["tokens"] if compare else None


def at_image_size(rough: NDArray[np.float32], image: Image) -> NDArray[np.float32]:
    """The graph's map [S,S] of an image -> [H,W]; raises SessionError if it is not finite."""
    check_finite({"rough": rough}, "rough")
    height, width = image.shape[:2]
    resized = cv2.resize(rough, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)
