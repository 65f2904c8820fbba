"""Time of the streamed metrics against sorting all pixels.

    python benchmarks/bench_metrics.py --images 20 --side 512

One figure a line: CPU seconds for the whole set (one image is run before, uncounted), and how much
longer sorting takes; CPU time, so that other work on the machine changes little. The run fails if
a streamed figure is further from the exact one than the bound that came with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from harness.clock import Clock
from numpy.typing import NDArray

from clipsam.research.evaluation.metrics import pixel_metrics, pro_score
from clipsam.research.evaluation.streamed_metrics import PixelHistogram

T = TypeVar("T")
Arrays = list[NDArray[Any]]


def make_set(images: int, side: int, seed: int) -> tuple[Arrays, Arrays]:
    """Smooth maps with noise, and masks of about ten discs; every fourth image is good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(images):
        mask = np.zeros((side, side), np.uint8)
        for _ in range(10 if number % 4 else 0):
            centre = (int(rng.integers(side)), int(rng.integers(side)))
            cv2.circle(mask, centre, int(rng.integers(2, max(3, side // 25))), 1, -1)
        blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), side / 60)
        noise = rng.random((side, side), dtype=np.float32)
        maps.append(np.asarray(0.6 * blurred + 0.3 * noise, np.float32))
        masks.append(mask > 0)
    return maps, masks


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and its CPU seconds."""
    clock = Clock()
    with clock("work"):
        result = work()
    return result, clock.stages["work"][1] / 1e3


def stream(maps: Arrays, masks: Arrays) -> tuple[dict[str, float], dict[str, float]]:
    histogram = PixelHistogram()
    for score, mask in zip(maps, masks, strict=True):
        histogram.add(score, mask)
    return histogram.metrics(), histogram.errors()


def exact(maps: Arrays, masks: Arrays) -> dict[str, float]:
    return {**pixel_metrics(np.stack(maps), np.stack(masks)), "pro": pro_score(maps, masks)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    maps, masks = make_set(args.images, args.side, args.seed)
    stream(maps[1:2], masks[1:2])
    (found, errors), streamed = timed(lambda: stream(maps, masks))
    truth, sorted_ = timed(lambda: exact(maps, masks))

    megapixels = args.images * args.side**2 / 1e6
    print(f"{args.images} images of {args.side}x{args.side}: {megapixels:.1f} megapixels")
    print(f"streamed, all four figures  {streamed:8.2f} s  {streamed / megapixels * 1e3:.0f} ms/MP")
    print(f"sorted, all four, exact     {sorted_:8.2f} s  {sorted_ / streamed:.1f} x")
    failed = False
    for name, value in truth.items():
        distance = abs(found[name] - value)
        failed |= distance > errors[name] + 1e-9
        print(f"{name:7} {value:.6f}  streamed off by {distance:.1e}, bound {errors[name]:.1e}")
    if failed:
        print("error: a figure is further from the exact one than its bound.", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
