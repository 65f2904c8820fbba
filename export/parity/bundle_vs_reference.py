"""The bundle as a whole against the plain PyTorch method: same components, masks, map, verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipsam.export.parity.inspection import (
    EndToEndCheck,
    Picture,
    Remembering,
    compare_picture,
    faults,
)
from clipsam.export.parity.onnx_vs_torch import DisagreementError, checkable, remedy
from clipsam.research.models.reference import Reference, ReferenceResult
from clipsam.runtime.backends.base import Session, open_session
from clipsam.runtime.bundle import FLOAT32, GRAPHS, Bundle
from clipsam.runtime.core.errors import ExportError
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.picture import obvious_reasons
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts


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

    Threshold and limit are those of `check_options`.
    """
    categories = list(reference.text)
    expected = []
    for i, (name, image) in enumerate(images):
        category = categories[i % len(categories)]
        rough = reference.rough_map(image, reference.text[category])
        options = check_options(rough, reference.options)
        result = reference.refine(image, rough, options)
        expected.append(Expected(name, image, category, options, result))
        progress()
    return expected


def check_options(rough: NDArray[np.float32], options: PromptOptions) -> PromptOptions:
    """The options by which the rough map [H,W] gives SAM something to do.

    Threshold and limit are `options`' own unless they would find nothing or nearly everything, as
    with random weights. See `check_threshold`.
    """
    options = replace(options, threshold=check_threshold(rough, options.threshold))
    return options if len(find_prompts(rough, options)) else replace(options, limit=0.0)


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

    Raises DisagreementError, naming the image and what differs, at the first that disagrees, and
    ExportError when no image reached SAM.
    """
    checks = []
    with ExitStack() as stack:
        sessions: dict[str, Session] = {}
        for name in GRAPHS:
            entry = bundle.graph_entry(name, precision)
            path = bundle.graph_path(name, precision)
            file = stack.enter_context(checkable(path, entry.precision))
            session = stack.enter_context(open_session(file, "cpu", threads))
            sessions[name] = Remembering(session)
        for item in expected:
            check = _compare(bundle, sessions, item, precision)
            checks.append(check)
            if not check.passed:
                raise _disagreement(check)
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
    result, prompts = item.result, item.result.prompts
    options, refined = bundle.manifest.decision, len(prompts) > 0
    reasons = obvious_reasons(item.image)
    decision = decide(result.final, prompts, options, refined=refined, reasons=reasons)
    picture = Picture(
        item.name,
        item.image,
        item.category,
        item.options,
        prompts,
        result.masks.reshape(-1, *item.image.shape[:2]),
        result.scores,
        result.final,
        decision.verdict,
    )
    return compare_picture(bundle, sessions, picture, precision)


def _disagreement(check: EndToEndCheck) -> DisagreementError:
    reason = f"{faults(check)} differs on '{check.image}'"
    message = (
        f"The bundle in {check.precision} does not agree with the PyTorch reference on the check "
        f"image '{check.image}': {faults(check)} differs; no bundle was written. "
        f"{'' if check.precision == FLOAT32 else remedy(check.precision)}"
    ).strip()
    return DisagreementError(message, reason)
