"""What a calibrated bundle says of frames that show no part as the good ones do.

    python benchmarks/bench_frames.py bundles/tiny parts.calibration path/to/test/good \\
        --other path/to/another/product

Every good picture is spoilt in every way; the first row is the pictures as they are, so what it
does not call good are false refusals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.runtime import ClipSAM, read_image
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.result import VERDICTS
from clipsam.runtime.results.jobs import find_jobs

Picture = NDArray[np.uint8]


def noise(picture: Picture, mean: float) -> Picture:
    """A frame of sensor noise around one gray value."""
    drawn = np.random.default_rng(0).normal(mean, 2, picture.shape)
    return np.asarray(np.clip(drawn, 0, 255), np.uint8)


def brighter(picture: Picture, gain: float) -> Picture:
    return np.asarray(np.clip(picture * gain, 0, 255), np.uint8)


def border(picture: Picture) -> Picture:
    """The tray without the part: the colour of the picture's rim, with noise."""
    rim = np.concatenate([picture[:8].reshape(-1, 3), picture[-8:].reshape(-1, 3)])
    drawn = np.random.default_rng(0).normal(0, 3, picture.shape)
    return np.asarray(np.clip(np.median(rim, axis=0) + drawn, 0, 255), np.uint8)


SPOILT: dict[str, Callable[[Picture], Picture]] = {
    "as it is": lambda p: p,
    "lamp off (noise around 3)": lambda p: noise(p, 3),
    "a tenth of the light": lambda p: brighter(p, 0.1),
    "half of the light": lambda p: brighter(p, 0.5),
    "burnt out (all white)": lambda p: noise(p, 254),
    "four times the light": lambda p: brighter(p, 4),
    "empty tray": border,
    "shifted by a quarter": lambda p: np.roll(p, p.shape[1] // 4, axis=1),
    "blurred (sigma 2)": lambda p: np.asarray(cv2.GaussianBlur(p, (0, 0), 2), np.uint8),
    "blurred (sigma 6)": lambda p: np.asarray(cv2.GaussianBlur(p, (0, 0), 6), np.uint8),
    "red and blue swapped": lambda p: np.ascontiguousarray(p[..., ::-1]),
    "upside down": lambda p: np.ascontiguousarray(p[::-1]),
}


def main() -> None:
    """Print the table."""
    parser = command_parser(None, __doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("good", type=Path)
    parser.add_argument("--other", type=Path, help="pictures of another product")
    parser.add_argument("--each", type=int, default=20, help="pictures at most (default: 20)")
    args = parser.parse_args()
    print(f"| frame | {' | '.join(VERDICTS)} | reasons |\n{'| --- ' * (len(VERDICTS) + 2)}|")
    with ClipSAM.open(args.bundle, calibration=args.calibration) as model:
        pictures = [read_image(job.source) for job in find_jobs([args.good])[: args.each]]
        rows = {name: [spoil(p) for p in pictures] for name, spoil in SPOILT.items()}
        if args.other:
            height, width = pictures[0].shape[:2]
            others = [read_image(job.source) for job in find_jobs([args.other])[: args.each]]
            rows["another product"] = [
                np.asarray(cv2.resize(p, (width, height)), np.uint8) for p in others
            ]
        for name, frames in rows.items():
            # No time for SAM, which changes no verdict.
            results = [model.inspect(frame, deadline_ms=0) for frame in frames]
            verdicts = Counter(result.verdict for result in results)
            reasons = Counter(reason for result in results for reason in result.reasons)
            told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            cells = " | ".join(str(verdicts[verdict]) for verdict in VERDICTS)
            print(f"| {name} | {cells} | {told} |", flush=True)


if __name__ == "__main__":
    main()
