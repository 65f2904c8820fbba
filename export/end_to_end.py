"""The bundle as a whole against the plain PyTorch method: same components, masks, map, verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.parity import checkable, remedy
from clipsam.export.tolerances import TOLERANCES
from clipsam.research.reference import Reference, ReferenceResult
from clipsam.runtime.bundle import FLOAT32, GRAPHS, Bundle
from clipsam.runtime.decision import decide
from clipsam.runtime.errors import ExportError
from clipsam.runtime.fusion import fixed_scale, fuse
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.preprocess import Image
from clipsam.runtime.prompts import PromptOptions, find_prompts
from clipsam.runtime.result import ANOMALOUS, GOOD
from clipsam.runtime.rough_map import rough_map
from clipsam.runtime.segment import Segmenter
from clipsam.runtime.session import Array, Session, open_session

MASK_PIXELS = 2  # a mask that differs in no more is the same, however small


@dataclass(frozen=True)
class EndToEndCheck:
    """One image through the bundle and through the reference."""

    precision: str
    image: str
    prompts: int
    same_boxes: bool  # what float32 must have; other precisions move an edge by a pixel
    mask_iou: float  # the worst mask's in float32, else the mean; for the reference's prompts
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
    precision: str = FLOAT32,
) -> list[EndToEndCheck]:
    """The runtime's own pipeline in `precision` on the reference's images.

    Raises ExportError, naming the image and what differs, at the first that disagrees, and when
    no image reached SAM.
    """
    checks = []
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name in GRAPHS:
            entry = bundle.graph_entry(name, precision)
            path = bundle.graph_path(name, precision)
            file = stack.enter_context(checkable(path, entry.precision))
            session = stack.enter_context(open_session(file, "cpu", threads))
            sessions[name] = _Remembering(session)
        for item in expected:
            check = _compare(bundle, sessions, item, precision)
            checks.append(check)
            if not check.passed:
                raise ExportError(_complaint(check))
            progress()
    if not any(check.prompts for check in checks):
        raise ExportError(
            "The end-to-end check found no prompt in any image, so SAM was never compared; no "
            "bundle was written. The rough map is constant: check the UMCI weights."
        )
    return checks


def _compare(
    bundle: Bundle, sessions: Mapping[str, Session], item: Expected, precision: str
) -> EndToEndCheck:
    """The verdict is the bundle's own from beginning to end; SAM is asked the reference's prompts,
    so that masks can be compared one by one."""
    manifest = replace(bundle.manifest, prompts=item.options)
    model = ClipSAM(Bundle(bundle.folder, manifest, bundle.id), dict(sessions))
    result = model.inspect(item.image, item.category, norm="fixed")
    reference, limit = item.result, TOLERANCES[precision]
    count = len(reference.prompts)

    rough = rough_map(sessions["clip_umci"], item.image, bundle.text(item.category))
    own = find_prompts(rough, item.options)
    same_boxes = np.array_equal(own.boxes, reference.prompts.boxes)
    masks, overlaps, same_masks, scores = None, [1.0], True, 0.0
    flipped = np.zeros(item.image.shape[:2], np.bool_)
    if count:
        segmenter = Segmenter(sessions["sam_encoder"], sessions["sam_decoder"])
        masks = segmenter.decode(segmenter.encode(item.image), reference.prompts)
        scores = float(np.abs(masks.scores - reference.scores).max())
        flat = reference.masks.reshape(-1, *reference.masks.shape[2:])
        overlaps = []
        for (found, _), wanted in zip(masks.binary(), flat, strict=True):
            differs = found != wanted
            pixels = int(differs.sum())
            overlaps.append(1 - pixels / max(1, int((found | wanted).sum())))
            same_masks &= overlaps[-1] >= limit.mask_iou or pixels <= MASK_PIXELS
            flipped |= differs
    exact = precision == FLOAT32
    mask_iou = min(overlaps) if exact else sum(overlaps) / len(overlaps)
    final = result.score_map
    if not np.array_equal(own.coordinates(), reference.prompts.coordinates()):
        weight = manifest.fusion.mask_weight
        final = fixed_scale(fuse(rough, masks, weight), model.masks_per_box, weight)
    final_map = float(np.abs(final - reference.final)[~flipped].max(initial=0.0))

    _, regions = decide(
        reference.final, reference.prompts.components, manifest.decision, refined=count > 0
    )
    same_verdict = result.verdict == (ANOMALOUS if regions else GOOD)
    passed = (
        (same_boxes and same_masks if exact else mask_iou >= limit.mask_iou)
        and scores <= limit.scores
        and final_map <= limit.final_map
        and same_verdict
    )
    return EndToEndCheck(
        precision, item.name, count, same_boxes, mask_iou, int(flipped.sum()), scores, final_map,
        same_verdict, passed,
    )  # fmt: skip


def _complaint(check: EndToEndCheck) -> str:
    limit, exact = TOLERANCES[check.precision], check.precision == FLOAT32
    faults = {
        "its components": exact and not check.same_boxes,
        f"a mask (IoU {check.mask_iou:.4f}, at least {limit.mask_iou} is needed)": check.mask_iou
        < limit.mask_iou,
        f"a score (by {check.scores:.1e}, {limit.scores:.0e} is allowed)": check.scores
        > limit.scores,
        f"the final map (by {check.final_map:.1e}, {limit.final_map:.0e} is allowed)": (
            check.final_map > limit.final_map
        ),
        "the verdict": not check.same_verdict,
    }
    wrong = ", ".join(what for what, is_wrong in faults.items() if is_wrong)
    return (
        f"The bundle in {check.precision} does not agree with the PyTorch reference on the check "
        f"image '{check.image}': {wrong} differs; no bundle was written. "
        f"{'' if exact else remedy(check.precision)}"
    ).strip()


class _Remembering(Session):
    """A session that does not run again for what it was fed last."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.inputs, self.outputs, self.provider = inner.inputs, inner.outputs, inner.provider
        self._fed: Mapping[str, Array] = {}
        self._returned: Mapping[str, Array] = {}

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if not self._fed or not all(np.array_equal(feeds[n], self._fed[n]) for n in feeds):
            self._returned = self._inner.run(feeds)
            self._fed = {name: array.copy() for name, array in feeds.items()}
        return {name: array.copy() for name, array in self._returned.items()}
