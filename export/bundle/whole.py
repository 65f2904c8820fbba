"""A bundle as a whole while it is built: held against the reference, and recorded for engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipsam.export.bundle.progress import stage
from clipsam.export.graphs.calibration import CalibrationImages
from clipsam.export.parity.bundle_vs_reference import (
    Expected,
    check_end_to_end,
    check_options,
    run_reference,
)
from clipsam.export.parity.golden import GOLDEN, write_golden
from clipsam.export.parity.golden_record import LARGEST, Asked, golden_steps, make_golden, open_all
from clipsam.export.parity.inputs import varied_images
from clipsam.export.parity.inspection import EndToEndCheck
from clipsam.research.models.reference import Reference
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.images.thumbnail import shrink
from clipsam.runtime.stages.rough_map import rough_map

_STANDARD = 4  # images
_RECORDED_OWN = 2  # of the user's images


@dataclass(frozen=True)
class References:
    """What the reference says of the standard images, and of the user's that were held out."""

    standard: list[Expected]
    own: list[Expected]


def run_references(reference: Reference, images: CalibrationImages | None) -> References:
    """Run the reference on both."""
    standard = list(varied_images(_STANDARD))
    own = [] if images is None else list(images.read(images.held_out))
    with stage("reference", len(standard) + len(own)) as bar:
        return References(
            run_reference(reference, standard, bar.update),
            run_reference(reference, own, bar.update),
        )


def check_against(
    bundle: Bundle, expected: Sequence[Expected], precision: str, threads: int | None
) -> list[EndToEndCheck]:
    """`check_end_to_end`, as a stage of the build."""
    with stage(f"end to end {precision}", len(expected)) as bar:
        return check_end_to_end(bundle, expected, threads, bar.update, precision)


def record(bundle: Bundle, expected: References, threads: int | None) -> None:
    """Write into the bundle what engines are judged by on a box without PyTorch."""
    asked = [(item.name, item.image, item.category, item.options) for item in expected.standard]
    chosen = expected.own[:_RECORDED_OWN]
    own: list[Asked] = []
    with (
        open_all(bundle, threads) as sessions,
        stage("golden", golden_steps(asked, chosen)) as bar,
    ):
        for item in chosen:
            image = np.asarray(shrink(item.image, LARGEST), np.uint8)
            rough = rough_map(sessions["clip_umci"], image, bundle.text(item.category))
            own.append((item.name, image, item.category, check_options(rough, item.options)))
        golden = make_golden(bundle, sessions, asked, own, bar.update)
    write_golden(bundle.folder / GOLDEN, golden)
