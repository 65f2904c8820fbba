"""Stage one: CLIP and UMCI find the defect roughly (Sec. 3.2)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.preprocess import Image, clip_input
from clipsam.runtime.session import Session, check_finite


def rough_map(session: Session, image: Image, text: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rough anomaly map O_f float32 [H,W] in [0,1], in image coordinates.

    `image` is HxWx3 uint8 RGB, `text` the category's L [C_t,2]. The S x S map of the graph is
    brought to image size bilinearly with half-pixel centres.
    """
    size = int(session.inputs["image"].shape[1])
    outputs = session.run({"image": clip_input(image, size), "text": text[None]})
    check_finite(outputs, "rough")
    height, width = image.shape[:2]
    resized = cv2.resize(outputs["rough"][0], (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)
