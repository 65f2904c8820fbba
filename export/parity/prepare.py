"""Does the graph `prepare` say what the host says? Pixel by pixel, on pictures of every kind.

What it is held against needs neither recording nor PyTorch: the host's own resizes, Pillow's and
OpenCV's, are on every box. So a build, a fresh engine and a device are judged by the same call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from clipsam.export.parity.inspection import Picture
from clipsam.runtime.backends.base import Session
from clipsam.runtime.bundle import PREPARE, Bundle
from clipsam.runtime.core.errors import ExportError
from clipsam.runtime.images.image import Image
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.prepare import LONGEST, matrices
from clipsam.runtime.stages.preprocess import clip_input, sam_input

Size = tuple[int, int]  # height, width

# A picture that both enlarge; one that CLIP enlarges along one side; SAM's own scale with the most
# sums half-way between two values; a camera's.
SIZES: tuple[Size, ...] = ((130, 90), (240, 1100), (1024, 1280), (1200, 1600))
LARGE: tuple[Size, ...] = ((2048, 2448), (LONGEST, LONGEST))
RUNS = 2  # the second of an engine may be a replayed CUDA graph

MOST_OFF = 1  # grey levels
# Of the pixels, at most. CLIP's picture is rounded once in the graph and, where one side grows and
# the other shrinks, twice on the host: 0.23 of them differ there, and next to none otherwise.
MOST_SHARE = {"clip": 0.4, "sam": 0.05}


@dataclass(frozen=True)
class PrepareCheck:
    """One of the two pictures that the graph made of one, against the host's.

    Attributes:
      picture: width x height.
      output: "clip" or "sam".
      off: the most, in grey levels.
      share: of the values that differ at all; of SAM's, of those within the picture.
    """

    picture: str
    output: str
    off: int
    share: float

    @property
    def passed(self) -> bool:
        """Whether the graph may be used."""
        return self.off <= MOST_OFF and self.share <= MOST_SHARE[self.output]

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return {**asdict(self), "passed": self.passed}


def check_prepare(
    session: Session,
    sizes: Iterable[Size] = SIZES,
    progress: Callable[[], object] = lambda: None,
) -> list[PrepareCheck]:
    """Hold an opened `prepare` against the host; calls `progress` once a picture.

    Raises ExportError at the first picture that is too far off, and SessionError.
    """
    checks = []
    for number, size in enumerate(sizes):
        image = _picture(*size, seed=number)
        for _ in range(RUNS):
            for check in _compare(session, image):
                checks.append(check)
                if not check.passed:
                    raise ExportError(
                        f"The graph prepare makes of a picture of {check.picture} pixels another "
                        f"{check.output} picture than the host does: by {check.off} grey levels "
                        f"({MOST_OFF} is allowed), {check.share:.0%} of its values differ "
                        f"({MOST_SHARE[check.output]:.0%} is allowed)."
                    )
        progress()
    return checks


@dataclass(frozen=True)
class MaskCheck:
    """A picture inspected with its pictures made by `prepare`, against the host's.

    Attributes:
      prompts: of the host's way.
      mask_iou: of the two masks of defects; 1 where both are empty.
      score, final_map: the largest differences, both of 0..1.
    """

    image: str
    prompts: int
    mask_iou: float
    score: float
    final_map: float
    same_verdict: bool


def compare_masks(
    bundle: Bundle,
    sessions: Mapping[str, Session],
    prepare: Session,
    pictures: Iterable[Picture],
) -> list[MaskCheck]:
    """What `prepare` changes of inspections by the graphs in `sessions`, picture by picture."""
    checks = []
    for picture in pictures:
        manifest = dataclasses.replace(bundle.manifest, prompts=picture.options)
        opened = Bundle(bundle.folder, manifest, bundle.id)
        host, device = (
            ClipSAM(opened, own).inspect(picture.image, picture.category, norm="fixed")
            for own in (sessions, {**sessions, PREPARE: prepare})
        )
        either = np.count_nonzero(host.mask | device.mask)
        checks.append(
            MaskCheck(
                picture.name,
                host.prompts,
                float(np.count_nonzero(host.mask & device.mask) / either) if either else 1.0,
                float(abs(host.score - device.score)),
                float(np.abs(host.score_map - device.score_map).max()),
                host.verdict == device.verdict,
            )
        )
    return checks


def worst(checks: Iterable[PrepareCheck]) -> dict[str, float]:
    """The largest difference and share of either output, for a manifest or a report."""
    found: dict[str, float] = {}
    for check in checks:
        for name, value in (("off", check.off), ("share", check.share)):
            key = f"{check.output}_{name}"
            found[key] = max(found.get(key, 0), value)
    return found


def _compare(session: Session, image: Image) -> list[PrepareCheck]:
    height, width = image.shape[:2]
    sides = {name: int(spec.shape[1]) for name, spec in session.outputs.items()}
    geometry = Geometry(height, width, sides["sam"])
    frame, (rows, columns) = sam_input(image, geometry)
    found = session.run({"image": image, **matrices(height, width, sides["clip"], sides["sam"])})
    values = {"clip": 3 * sides["clip"] ** 2, "sam": 3 * int(rows) * int(columns)}
    checks = []
    for output, expected in (("clip", clip_input(image, sides["clip"])), ("sam", frame)):
        off = cv2.absdiff(found[output], expected)
        share = float(np.count_nonzero(off) / values[output])
        checks.append(PrepareCheck(f"{width}x{height}", output, int(off.max()), share))
    return checks


def _picture(height: int, width: int, seed: int) -> Image:
    """Patches of every colour with soft edges, under a camera's noise."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    smooth = np.asarray(cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC))
    noise = rng.integers(-8, 9, smooth.shape, np.int16)
    return np.asarray(np.clip(smooth + noise, 0, 255), np.uint8)
