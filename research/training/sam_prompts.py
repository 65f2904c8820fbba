"""Prompts to train SAM with: imitations of what stage one would say, and what was seen itself.

An imitation is the true mask seen through CLIP's coarse grid, blurred, thresholded; a component's
box, and points drawn inside it, some of which miss. Boxes that fit are mixed in, and false alarms:
prompts on sound places, whose mask is empty.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from clipsam.research.synthetic.sample import Sample

POINTS = 5  # points a prompt; the bundle draws as many
GRID = 48  # CLIP's grid, through which the imitated rough map is seen
FILLED = 0.35  # share of a quarter-size pixel that counts: thin things never fill one
Prompt = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def pad(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with its bottom or right cut off and filled with SAM's mean pixel, which is what
    the padding of an image that is not square looks like."""
    size = sample.mask.shape[0]
    seen = np.zeros((size, size), np.bool_)
    rows, columns = size, int(size * rng.uniform(0.5, 1))
    if rng.random() < 0.5:
        rows, columns = columns, rows
    seen[:rows, :columns] = True
    image = np.where(seen[..., None], sample.image, np.array([124, 116, 104], np.uint8))
    defects = tuple(replace(d, mask=d.mask & seen) for d in sample.defects)
    parts = tuple(replace(p, mask=p.mask & seen) for p in sample.parts)
    return replace(
        sample,
        image=image,
        mask=sample.mask * seen,
        kind_map=sample.kind_map * seen,
        outline=sample.outline * seen,
        present=sample.present * seen,
        defects=tuple(d for d in defects if d.mask.any()),
        parts=tuple(p for p in parts if p.mask.any()),
    )


def make_prompt(sample: Sample, rng: np.random.Generator) -> Prompt:
    """Box [4], points [P,2] and the target [S/4,S/4] in {0,1} of one imitated prompt."""
    truth = sample.mask
    size = truth.shape[0]
    if not sample.defects or rng.random() < 0.12:
        region = _false_alarm(sample, rng)
    elif rng.random() < 0.75:
        region = _rough_component(truth, rng)
    else:
        region = _component(truth, rng)
    near = np.asarray(cv2.dilate(region, np.ones((size // GRID, size // GRID), np.uint8)))
    target = np.minimum(truth, near)
    ys, xs = np.nonzero(region)
    box = np.array([xs.min(), ys.min(), xs.max(), ys.max()], np.float32)
    extent = np.maximum(box[2:] - box[:2], 8)
    box += rng.normal(0, 0.03, 4).astype(np.float32) * np.tile(extent, 2)
    box = np.clip(
        np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])]), 0, size - 1
    )
    pick = rng.integers(0, len(ys), POINTS)
    points = np.stack([xs[pick], ys[pick]], axis=1).astype(np.float32)
    small = cv2.resize(
        target.astype(np.float32), (size // 4, size // 4), interpolation=cv2.INTER_AREA
    )
    return box.astype(np.float32), points, (small > FILLED).astype(np.float32)


def seen_prompts(
    seen: NDArray[np.float32], share: NDArray[np.float32], rng: np.random.Generator, limit: int
) -> list[Prompt]:
    """Up to `limit` prompts, as `make_prompt`'s, from a map [S/4,S/4] in [0,1] of what was seen
    where: components above a half, with a peak. `share` [S/4,S/4] is the truth."""
    count, labels = cv2.connectedComponents((seen > 0.5).astype(np.uint8), connectivity=8)
    prompts: list[Prompt] = []
    for label in rng.permutation(np.arange(1, count)):
        region = labels == label
        if len(prompts) == limit:
            break
        if int(region.sum()) < 2 or float(seen[region].max()) < 0.7:
            continue
        ys, xs = np.nonzero(region)
        box = np.array([xs.min(), ys.min(), xs.max() + 0.75, ys.max() + 0.75], np.float32) * 4
        pick = rng.integers(0, len(ys), POINTS)
        points = np.stack([xs[pick], ys[pick]], axis=1).astype(np.float32) * 4 + 1.5
        near = cv2.dilate(region.astype(np.uint8), np.ones((5, 5), np.uint8))
        prompts.append((box, points, ((share > FILLED) & (near > 0)).astype(np.float32)))
    return prompts


def _false_alarm(sample: Sample, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A region that is no defect: a hole or mark of the part, or any spot."""
    size = sample.mask.shape[0]
    sound = [item.mask for item in sample.parts if item.kind != "part"]
    region = np.zeros((size, size), np.uint8)
    if sound and rng.random() < 0.5:
        region = _component(sound[int(rng.integers(len(sound)))].astype(np.uint8), rng)
    else:
        at = tuple(int(v) for v in rng.integers(0, size, 2))
        axes = tuple(int(v) for v in np.maximum(3, size * 0.01 * rng.lognormal(1.3, 0.7, 2)))
        cv2.ellipse(region, at, axes, float(rng.uniform(0, 180)), 0, 360, (1,), -1)
    return region


def _component(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One of the 8-connected components of a mask, larger ones more often."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = np.sqrt(stats[1:, cv2.CC_STAT_AREA].astype(np.float64))
    label = 1 + int(rng.choice(count - 1, p=areas / areas.sum()))
    return np.asarray(labels == label, np.uint8)


def _rough_component(mask: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A component of the mask as stage one might see it: coarse, blurred, too large or small."""
    size = mask.shape[0]
    coarse = cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(np.sqrt(coarse), (0, 0), float(rng.uniform(0.4, 1.6)))
    coarse = coarse * (1 + 0.3 * _smooth_noise(rng)) + 0.06 * _smooth_noise(rng)
    full = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    near = cv2.dilate(mask, np.ones((size // 8, size // 8), np.uint8))
    full = np.where(near > 0, full, 0)
    rough = full > float(rng.uniform(0.2, 0.6)) * float(full.max())
    if not rough.any():  # the noise drowned a tiny defect
        rough = mask > 0
    return _component(rough.astype(np.uint8), rng)


def _smooth_noise(rng: np.random.Generator) -> NDArray[np.float32]:
    """[GRID,GRID] with mean 0, deviation 1 and features of about five tokens."""
    small = rng.standard_normal((10, 10)).astype(np.float32)
    grid = cv2.resize(small, (GRID, GRID), interpolation=cv2.INTER_CUBIC)
    return np.asarray(grid, np.float32)
