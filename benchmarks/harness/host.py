"""What the host does for a part outside its engines, which here are stand-ins that answer at once.

They do what TensorRT's session does on the host: inputs are copied to a buffer that stands for
pinned memory, outputs are copied out of one. Sizes are those of the paper's models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.export.graphs.prepare import inputs_of
from clipsam.runtime.backends.base import Array, DeviceArray, Feeds, Session, TensorSpec
from clipsam.runtime.bundle import PREPARE, Manifest
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.prepare import Preparer
from clipsam.runtime.stages.preprocess import clip_input, sam_input
from clipsam.runtime.stages.prompt_buckets import bucket
from clipsam.runtime.stages.prompts import find_prompts
from clipsam.runtime.stages.rough_map import look_map
from clipsam.runtime.stages.sam import Masks
from clipsam.runtime.stages.tiles import OFF, choose_grid
from harness.planted import picture, planted_map

SIZES = {"1 MP": (1024, 1024), "5 MP": (2048, 2448), "12 MP": (3000, 4000)}
CLIP_SIZE, SAM_SIZE, LOW, TOKENS, CHANNELS = 336, 1024, 256, 24, 1024
MASKS = 3  # a box
POINTS = 7


class Answering(Session):
    """A session that has its outputs ready, and copies in and out as a device's does."""

    keeps, provider, precision, device_id = True, "tensorrt", "fp16", 0

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.answers = dict(outputs)
        self.outputs = {n: TensorSpec(n, a.dtype.name, a.shape) for n, a in outputs.items()}
        self._pinned: dict[tuple[str, tuple[int, ...]], Array] = {}

    def _bring(self, feeds: Feeds) -> None:
        for name, array in feeds.items():
            if isinstance(array, np.ndarray):
                key = name, array.shape
                if key not in self._pinned:
                    self._pinned[key] = np.zeros_like(array)
                np.copyto(self._pinned[key], array)

    def _run(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, Array]:
        self._bring(feeds)
        return {name: self.answers[name].copy() for name in wanted}

    def _keep(self, feeds: Feeds, wanted: Sequence[str]) -> dict[str, DeviceArray]:
        self._bring(feeds)
        found = {name: self.answers[name] for name in wanted}
        return {
            n: DeviceArray(a.dtype.name, a.shape, self.provider, None, a.copy)
            for n, a in found.items()
        }


def answering(height: int, width: int, boxes: int, *, prepares: bool) -> ClipSAM:
    """The pipeline for a picture of this size in which CLIP finds `boxes` defects."""
    rough = uneven(planted_map(CLIP_SIZE, boxes))
    count = bucket(boxes)
    sessions: dict[str, Session] = {
        "clip_umci": Answering(
            [_picture(CLIP_SIZE), TensorSpec("text", "float32", (1, CHANNELS, 2))],
            {"rough": rough[None], "tokens": np.zeros((1, TOKENS**2, CHANNELS), np.float16)},
        ),
        "sam_encoder": Answering(
            [_picture(SAM_SIZE), TensorSpec("valid_size", "int64", (2,))],
            {"embedding": np.zeros((1, 256, 64, 64), np.float32)},
        ),
        "sam_decoder": Answering(
            [
                TensorSpec("embedding", "float32", (1, 256, 64, 64)),
                TensorSpec("point_coords", "float32", ("prompts", POINTS, 2)),
                TensorSpec("point_labels", "float32", ("prompts", POINTS)),
            ],
            {"logits": logits(height, width, count), "scores": np.full((count, MASKS), 0.9, "f4")},
        ),
    }
    if prepares:
        made = {"clip": (1, CLIP_SIZE, CLIP_SIZE, 3), "sam": (1, SAM_SIZE, SAM_SIZE, 3)}
        sessions[PREPARE] = Answering(
            inputs_of(CLIP_SIZE, SAM_SIZE),
            {name: np.zeros(shape, np.uint8) for name, shape in made.items()},
        )
    manifest = Manifest("stand-in", {}, {}, ("object",))
    bundle: Any = SimpleNamespace(
        manifest=manifest,
        id="0",
        text=lambda word: np.zeros((CHANNELS, 2), np.float32),
        namer=None,
    )
    return ClipSAM(bundle, sessions, InspectOptions())


def uneven(rough: NDArray[np.float32]) -> NDArray[np.float32]:
    """The map with low hills, as CLIP draws them on good parts: a flat one is one component."""
    noise = np.random.default_rng(0).random(rough.shape).astype(np.float32)
    hills = cv2.GaussianBlur(noise, (0, 0), 8)
    hills = (hills - hills.min()) / np.ptp(hills)
    return np.asarray(np.maximum(0.9 * rough, 0.2 * hills), np.float32)


def _picture(side: int) -> TensorSpec:
    return TensorSpec("image", "uint8", (1, side, side, 3))


def logits(height: int, width: int, boxes: int) -> Array:
    """SAM's masks [boxes,3,256,256] of squares where `planted_map` has them: each, a little less
    and a little more, with soft edges."""
    rows, columns = (LOW * side // SAM_SIZE for side in Geometry(height, width, SAM_SIZE).sam_shape)
    found = np.full((boxes, MASKS, LOW, LOW), -8, np.float32)
    for box in range(boxes):
        one = planted_map(CLIP_SIZE, box + 1) - planted_map(CLIP_SIZE, box)
        small = cv2.resize(one, (columns, rows), interpolation=cv2.INTER_AREA)
        soft = cv2.GaussianBlur(small, (0, 0), 2)
        for mask, level in enumerate((0.6, 0.5, 0.4)):
            found[box, mask, :rows, :columns] = 16 * (soft - level)
    return found


def steps(height: int, width: int, boxes: int) -> dict[str, Callable[[], object]]:
    """The host's steps of a defective part, each to be timed alone."""
    image, geometry = picture(height, width), Geometry(height, width, SAM_SIZE)
    device = answering(height, width, boxes, prepares=True)
    preparer = Preparer(*(device.sessions[n] for n in (PREPARE, "clip_umci", "sam_encoder")))
    grid, options = choose_grid(OFF, image.shape, CLIP_SIZE, TOKENS), device.bundle.manifest
    maps = uneven(planted_map(CLIP_SIZE, boxes))[None]
    rough = look_map(maps, image, grid)
    prompts = find_prompts(rough, options.prompts)
    masks = Masks(
        logits(height, width, boxes), np.full((boxes, MASKS), 0.9, np.float32), geometry
    )  # fmt: skip
    total = fuse(rough, masks)
    final = fixed_scale(total, MASKS)
    return {
        "CLIP's picture": lambda: clip_input(image, CLIP_SIZE),
        "SAM's picture": lambda: sam_input(image, geometry),
        "the picture for `prepare`, into pinned memory": lambda: preparer(image),
        "the map at the picture's size": lambda: look_map(maps, image, grid),
        "score, components, prompts": lambda: find_prompts(rough, options.prompts),
        "masks at the picture's size, added": lambda: fuse(rough, masks),
        "the map's scale": lambda: fixed_scale(total, MASKS),
        "mask, regions, verdict": lambda: decide(final, prompts, options.decision, refined=True),
        "for comparison: a map of that size out of pinned memory": lambda: final.copy(),
    }


def resize_times(prepare: Session, clip_umci: Session, encoder: Session) -> list[dict[str, Any]]:
    """Milliseconds of `prepare`, opened on any device, and of the host's two resizes."""
    sides = int(clip_umci.inputs["image"].shape[1]), int(encoder.inputs["image"].shape[1])
    preparer = Preparer(prepare, clip_umci, encoder)
    found = []
    for name, (height, width) in SIZES.items():
        image, geometry = picture(height, width), Geometry(height, width, sides[1])
        found.append(
            {
                "picture": name,
                "prepare_ms": _median_ms(partial(preparer, image)),
                "clip_ms": _median_ms(partial(clip_input, image, sides[0])),
                "sam_ms": _median_ms(partial(sam_input, image, geometry)),
            }
        )
    return found


def times_ms(
    call: Callable[[], object], clock: Callable[[], float] = time.perf_counter, least: int = 7
) -> list[float]:
    """Milliseconds of a call by `clock`, after one that is dropped; for a second at least."""
    call()
    times: list[float] = []
    end = time.perf_counter() + 1
    while len(times) < least or time.perf_counter() < end:
        start = clock()
        call()
        times.append((clock() - start) * 1e3)
    return times


def _median_ms(call: Callable[[], object]) -> float:
    return round(statistics.median(times_ms(call)), 2)
