"""What a row says of a picture whose defects are planted, and how far two rows are apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.export.parity.inspection import overlap
from clipsam.export.precisions.recipes import TOLERANCES
from harness.report import Line


@dataclass(frozen=True)
class Outcome:
    """What a row said of one picture whose defects are planted.

    Attributes:
      rough: float32 [S,S], CLIP's and UMCI's own map, which the planted one replaced.
      packed: uint8 [3q,B], SAM's masks of every prompt in turn, each by `np.packbits`.
      scores: float32 [q,3].
      final: float32 [H,W], the map on the fixed scale.
      verdict: "good" or "anomalous".
    """

    rough: NDArray[np.float32]
    packed: NDArray[np.uint8]
    scores: NDArray[np.float32]
    final: NDArray[np.float32]
    verdict: str

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """Every mask, bool [H,W]."""
        for mask in self.packed:
            flat = np.unpackbits(mask, count=self.final.size)
            yield flat.reshape(self.final.shape).astype(np.bool_)

    def save(self, path: Path) -> None:
        """Write it as `.npz`."""
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read what `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("rough", "packed", "scores", "final")}
            return cls(**arrays, verdict=str(file["verdict"]))


def agreement(wanted: Sequence[Outcome], found: Sequence[Outcome], precision: str) -> Line:
    """How far a row's outcomes are from those of eager: the worst picture, the mean overlap.

    `agrees` is True, or says what is further off than a build allows this precision;
    `mask_iou_build` is the overlap as builds take it, without the edges of small masks.
    """
    plain, least, forgiving, differences = [], [], [], []
    for ours, theirs in zip(found, wanted, strict=True):
        pairs = list(zip(ours.masks(), theirs.masks(), strict=True))
        overlaps = [overlap(a, b, exact=True) for a, b in pairs]
        plain.append(np.mean(overlaps))
        least.append(min(overlaps))
        forgiving.append(np.mean([overlap(a, b) for a, b in pairs]))
        differences.append(
            [
                np.abs(getattr(ours, name) - getattr(theirs, name)).max()
                for name in ("scores", "final", "rough")
            ]
        )
    scores, final, rough = (float(worst) for worst in np.max(differences, axis=0))
    iou, same = (
        float(min(forgiving)),
        all(a.verdict == b.verdict for a, b in zip(found, wanted, strict=True)),
    )
    limit = TOLERANCES[precision]
    wrong = [
        f"mask IoU {iou:.4f}" if iou < limit.mask_iou else "",
        f"score by {scores:.1e}" if scores > limit.scores else "",
        f"rough map by {rough:.1e}" if rough > limit.final_map else "",
        "" if same else "verdict",
    ]
    return {
        "pictures": len(found),
        "mask_iou": round(float(np.mean(plain)), 5),
        "mask_iou_min": round(float(min(least)), 5),
        "mask_iou_build": round(iou, 5),
        "score_difference": round(scores, 7),
        "final_map_difference": round(final, 7),
        "rough_map_difference": round(rough, 7),
        "same_verdict": same,
        "agrees": f"DIFFERS: {', '.join(filter(None, wrong))}" if any(wrong) else True,
    }
