"""The bundle as a whole against the plain PyTorch method: same components, masks, map, verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.research.reference import Reference, ReferenceResult
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.decision import decide
from clipsam.runtime.errors import ExportError
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.preprocess import Geometry, Image
from clipsam.runtime.prompts import PromptOptions
from clipsam.runtime.result import ANOMALOUS, GOOD
from clipsam.runtime.segment import Masks
from clipsam.runtime.session import Array, Session, open_session

# Masks are binary, so a logit that rounds to the other side of zero flips one pixel of an edge.
# The official upscaling computes its coordinates in float32 and is off by 1e-5 of the largest
# logit (OpenCV's by 1e-7, both against float64); of a mask of 200 pixels, one pixel is 0.5 %.
MASK_IOU = 0.999
MASK_PIXELS = 2  # a mask that differs in no more is the same, however small
SCORE_TOLERANCE = 1e-4  # absolute; SAM's scores lie near 0..1
MAP_TOLERANCE = 1e-3  # absolute, on the 0..1 map, where the masks are the same


@dataclass(frozen=True)
class EndToEndCheck:
    """One image through the bundle and through the reference."""

    image: str
    prompts: int
    same_boxes: bool
    mask_iou: float  # the worst mask's
    flipped: int  # pixels of the image where any mask differs
    scores: float  # largest difference
    final_map: float  # largest difference where no mask differs
    same_verdict: bool
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """For `parity.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Expected:
    """What the reference said of one image, and the options it was asked with."""

    name: str
    image: Image
    category: str
    options: PromptOptions
    result: ReferenceResult


def run_reference(
    reference: Reference,
    images: Sequence[tuple[str, Image]],
    progress: Callable[[], object] = lambda: None,
) -> list[Expected]:
    """The reference on every image, the categories in turn.

    The threshold is the options' own unless it would find nothing or nearly everything (as
    with random weights): SAM must have something to do. See `check_threshold`.
    """
    categories = list(reference.text)
    expected = []
    for i, (name, image) in enumerate(images):
        category = categories[i % len(categories)]
        rough = reference.rough_map(image, reference.text[category])
        threshold = check_threshold(rough, reference.options.threshold)
        options = replace(reference.options, threshold=threshold)
        result = reference.refine(image, rough, options)
        expected.append(Expected(name, image, category, options, result))
        progress()
    return expected


def check_threshold(rough: NDArray[np.float32], wanted: float) -> float:
    """A threshold for the rough map [H,W] at which the check is meaningful.

    `wanted` if between 0.1 % and half of the pixels exceed it, else the 95th percentile; then
    moved past at most 1 % of the pixels into the widest gap between two values, so that rounding
    does not decide on which side a pixel falls.
    """
    values = np.sort(rough, axis=None)
    above = float((values > wanted).mean())
    rank = round(len(values) * (1 - above if 1e-3 <= above <= 0.5 else 0.95))
    reach = max(1, min(len(values) // 100, (len(values) - rank) // 2))
    low, high = max(0, rank - reach), min(len(values) - 1, rank + reach)
    gap = low + int(np.diff(values[low : high + 1]).argmax())
    return float((values[gap] + values[gap + 1]) / 2)


def check_end_to_end(
    bundle: Bundle,
    expected: Sequence[Expected],
    threads: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> list[EndToEndCheck]:
    """The runtime's own pipeline on the reference's images.

    Raises ExportError, naming the image and what differs, at the first that disagrees, and when
    no image reached SAM.
    """
    checks = []
    with ExitStack() as stack:
        sessions = {
            name: _Recorder(
                stack.enter_context(open_session(bundle.graph_path(name), "cpu", threads))
            )
            for name in GRAPHS
        }
        for item in expected:
            checks.append(_check(bundle, sessions, item))
            progress()
    if not any(check.prompts for check in checks):
        raise ExportError(
            "The end-to-end check found no prompt in any image, so SAM was never compared; no "
            "bundle was written. The rough map is constant: check the UMCI weights."
        )
    return checks


def _check(bundle: Bundle, sessions: Mapping[str, _Recorder], item: Expected) -> EndToEndCheck:
    manifest = replace(bundle.manifest, prompts=item.options)
    model = ClipSAM(Bundle(bundle.folder, manifest, bundle.id), dict(sessions))
    result = model.inspect(item.image, item.category, norm="fixed")
    reference = item.result
    count = len(reference.prompts)

    same_boxes = result.prompts == count
    iou, same_masks, scores = 1.0, True, 0.0
    flipped = np.zeros(item.image.shape[:2], np.bool_)
    if same_boxes and count:
        decoder = sessions["sam_decoder"]
        height, width = reference.rough.shape
        geometry = Geometry(height, width, manifest.sam_image_size)
        boxes = geometry.to_sam(reference.prompts.boxes.reshape(-1, 2, 2))
        same_boxes = np.array_equal(decoder.fed["point_coords"][:, -2:], boxes)
        masks = Masks(decoder.returned["logits"], decoder.returned["scores"], geometry)
        scores = float(np.abs(masks.scores - reference.scores).max())
        flat = reference.masks.reshape(-1, *reference.masks.shape[2:])
        for (found, _), wanted in zip(masks.binary(), flat, strict=True):
            differs = found != wanted
            pixels = int(differs.sum())
            overlap = 1 - pixels / max(1, int((found | wanted).sum()))
            same_masks &= overlap >= MASK_IOU or pixels <= MASK_PIXELS
            iou = min(iou, overlap)
            flipped |= differs
    final_map = float(np.abs(result.score_map - reference.final)[~flipped].max(initial=0.0))

    _, regions = decide(
        reference.final, reference.prompts.components, manifest.decision, refined=count > 0
    )
    same_verdict = result.verdict == (ANOMALOUS if regions else GOOD)
    faults = {
        "its components": not same_boxes,
        f"a mask (IoU {iou:.4f}, at least {MASK_IOU} is needed)": not same_masks,
        f"a score (by {scores:.1e}, {SCORE_TOLERANCE} is allowed)": scores > SCORE_TOLERANCE,
        f"the final map (by {final_map:.1e}, {MAP_TOLERANCE} is allowed)": final_map
        > MAP_TOLERANCE,
        "the verdict": not same_verdict,
    }
    if wrong := [what for what, is_wrong in faults.items() if is_wrong]:
        raise ExportError(
            f"The bundle does not agree with the PyTorch reference on the check image "
            f"'{item.name}': {', '.join(wrong)} differs; no bundle was written."
        )
    return EndToEndCheck(
        item.name, count, same_boxes, iou, int(flipped.sum()), scores, final_map, same_verdict, True
    )


class _Recorder(Session):
    """A session that remembers what it was fed and what it returned last."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.inputs, self.outputs, self.provider = inner.inputs, inner.outputs, inner.provider
        self.fed: Mapping[str, Array] = {}
        self.returned: Mapping[str, Array] = {}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        returned = self._inner.run(feeds)
        self.fed, self.returned = dict(feeds), dict(returned)
        return returned
