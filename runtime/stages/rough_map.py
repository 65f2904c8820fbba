"""Stage one: CLIP and UMCI find the defect roughly (Sec. 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime.backends.base import Array, DeviceArray, Session, check_finite
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.prepare import Preparer, on_host
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.tiles import Grid, choose_grid, fuse_looks

# Precisions that scale what they multiply by the largest value of the whole batch: images of a
# batch would change each other's maps.
SCALED_TOGETHER = ("int8-dynamic",)
# Looks a run of the graph where a picture has tiles: a GPU is idle with fewer, two cores are 10 %
# slower one by one, and more take memory. An engine of TensorRT takes _MOST.
_LOOKS, _MOST = 4, 8

# Maps [1+n,S,S] of a view's looks, and the tokens [N,C] of its whole where parts are compared.
Found: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float16] | None]


def rough_map(session: Session, image: Image, text: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rough anomaly map O_f float32 [H,W] in [0,1] of one look, in image coordinates.

    `image` is HxWx3 uint8 RGB, `text` the category's L [C_t,2]. The S x S map of the graph is
    brought to image size bilinearly with half-pixel centres.
    """
    small, _ = find_rough(session, clip_input(image, clip_size(session)), text[None])
    return at_image_size(small[0], image)


@dataclass(frozen=True)
class Looks:
    """What CLIP is shown of one view: the whole, and its tiles.

    Attributes:
      inputs: uint8 [1,S,S,3], or [1+n,S,S,3] with n tiles.
      grid: of the tiles.
      frame: SAM's input of the whole, uint8 [1,D,D,3], where the device made it with CLIP's.
    """

    inputs: Array | DeviceArray
    grid: Grid
    frame: Array | DeviceArray | None = None

    @property
    def picture(self) -> Image:
        """What CLIP is shown of the whole, uint8 [S,S,3], on the host."""
        return np.asarray(on_host(self.inputs)[0], np.uint8)

    @classmethod
    def of(
        cls, session: Session, view: Image, tiles: str, preparer: Preparer | None = None
    ) -> Looks:
        """`tiles` is an option of `tiles.check_tiles`, `view` HxWx3 uint8 RGB.

        `preparer` makes the inputs, of views and tiles that it takes. Without it this is
        `preprocess.clip_input`.
        """
        size = clip_size(session)
        grid = choose_grid(tiles, view.shape, size, _tokens_a_side(session))
        inputs, frame = _shown(view, size, preparer)
        if len(grid) > 1:
            looks = [_shown(view[window], size, preparer)[0] for window in grid.windows()]
            inputs = np.concatenate([on_host(look) for look in (inputs, *looks)])
        return cls(inputs, grid, frame)


def _shown(
    view: Image, size: int, preparer: Preparer | None
) -> tuple[Array | DeviceArray, Array | DeviceArray | None]:
    """CLIP's input of a view and, where it was made by the way, SAM's."""
    if preparer is None or not preparer.takes(view):
        return clip_input(view, size), None
    prepared = preparer(view)
    return prepared.clip, prepared.sam


def _tokens_a_side(session: Session) -> int:
    """How many of CLIP's tokens lie along a side of its input."""
    return math.isqrt(int(session.outputs["tokens"].shape[1]))


def find_looks(
    session: Session, views: Sequence[Looks], texts: NDArray[np.float32], compare: bool = False
) -> list[Found]:
    """All looks of several views, whose texts are [B,C_t,2]: for every view the maps [1+n,S,S] of
    its looks and, with `compare`, the tokens [N,C] of its whole."""
    counts = [looks.inputs.shape[0] for looks in views]
    texts = np.repeat(texts, counts, axis=0)
    total = sum(counts)
    most = min(total, _MOST)
    if total > len(views):  # there are tiles
        most = 1 if session.precision in SCALED_TOGETHER else _LOOKS
    runs = [views[0].inputs]
    if total > 1:  # a batch is put together on the host: CLIP's pictures are small
        joined = np.concatenate([on_host(looks.inputs) for looks in views])
        runs = [joined[start : start + most] for start in range(0, total, most)]
    maps: list[NDArray[np.float32]] = []
    tokens: list[NDArray[np.float16] | None] = []
    for number, inputs in enumerate(runs):
        start = number * most
        some, seen = find_rough(session, inputs, texts[start : start + most], compare)
        maps.extend(some)
        tokens.extend([None] * len(some) if seen is None else seen)
    first = np.cumsum(counts) - counts
    return [
        (np.stack(maps[at : at + count]), tokens[at])
        for at, count in zip(first, counts, strict=True)
    ]


def clip_size(session: Session) -> int:
    """S, the side of CLIP's input."""
    return int(session.inputs["image"].shape[1])


def find_rough(
    session: Session,
    inputs: Array | DeviceArray,
    texts: NDArray[np.float32],
    compare: bool = False,
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


def look_map(maps: NDArray[np.float32], view: Image, grid: Grid) -> NDArray[np.float32]:
    """The rough map O_f float32 [H,W] in [0,1] of a view from its looks' maps [1+n,S,S].

    Raises SessionError if one of them is not finite.
    """
    rough = at_image_size(maps[0], view)
    if len(maps) > 1:
        check_finite({"rough": maps}, "rough")
        fuse_looks(rough, maps[1:], grid)
    return rough
