"""Procedural defects of a surface that stay small: scratches, cracks, holes, blobs, dents, streaks.

Each changes ``canvas.image`` and returns the HxW mask of what is visible, or None.
"""

from __future__ import annotations

import numpy as np

from clipsam.runtime.planting.canvas import (
    LABEL_ALPHA,
    Canvas,
    Mask,
    along_grain,
    change_tone,
    edge_spot,
    random_spot,
    relief,
    required_change,
    visible_mask,
)
from clipsam.runtime.planting.shapes import drawn, ragged, soft_area, stroke, walk
from clipsam.runtime.planting.textures import (
    Rng,
    blur,
    integer,
    log_uniform,
    uniform,
)


def scratch(rng: Rng, canvas: Canvas) -> Mask | None:
    if rng.random() < 0.25:
        return _band(rng, canvas)
    size, unit = canvas.size, canvas.unit
    plate = np.zeros((size, size), np.uint8)
    count = 1 if rng.random() < 0.5 else integer(rng, 2, 9)
    angle = along_grain(rng, canvas, 0.4)
    x, y = random_spot(rng, canvas)
    spread = log_uniform(rng, 3, 22) * unit
    # Long ones run from border to border; a few in the same direction are common on rolled metal.
    through = rng.random() < 0.25
    reach = (uniform(rng, 1.3, 2) if through else log_uniform(rng, 0.12, 1.3)) * size
    if through:
        spread *= 3
    bend = rng.normal(0, 0.04 if through else 0.3)
    jitter = log_uniform(rng, 0.004, 0.02 if through else 0.08)
    # Some scratches skip: their strength changes along the path, down to nothing.
    skip = uniform(rng, 0, 1.1) if rng.random() < 0.5 else 0.2
    for _ in range(count):
        length = reach * uniform(rng, 0.4, 1.0) if count > 1 else reach
        across = rng.normal(0, spread)
        shift = uniform(rng, -0.25, 0.25) * reach if count > 1 else 0.0
        begin = (
            x - np.cos(angle) * (length / 2 + shift) - np.sin(angle) * across * (count > 1),
            y - np.sin(angle) * (length / 2 + shift) + np.cos(angle) * across * (count > 1),
        )
        steps = int(np.clip(length / (5 * unit), 4, 40))
        points = walk(rng, begin, angle, length, steps, bend, jitter)
        taper = np.sin(np.linspace(0.25, np.pi - 0.25, steps))
        swing = np.interp(
            np.arange(steps),
            np.arange(0, steps + 4, 3),
            rng.random(len(np.arange(0, steps + 4, 3))),
        )
        widths = log_uniform(rng, 0.8, 4.2) * unit * (0.4 + 0.6 * taper)
        stroke(plate, points, widths, 255 * np.clip(1 - skip * swing, 0, 1))
    alpha = drawn(plate, uniform(rng, 0, 0.9 if rng.random() < 0.8 else 2.0) * unit)
    return change_tone(rng, canvas, alpha, dark=0.35, opaque=uniform(rng, 0, 0.7), strong=0.6)


def _band(rng: Rng, canvas: Canvas) -> Mask | None:
    """A streak of many fine parallel lines, often from border to border: one broad scratch."""
    size, unit = canvas.size, canvas.unit
    angle = along_grain(rng, canvas, 0.6)
    x, y = random_spot(rng, canvas)
    reach = size * (uniform(rng, 1.5, 2.2) if rng.random() < 0.6 else log_uniform(rng, 0.3, 1.2))
    half = log_uniform(rng, 1.5, 12) * unit
    plate = np.zeros((size, size), np.uint8)
    base = uniform(rng, 90, 200)
    strands = [(0.0, 2 * half, base)]  # the whole of it, and lines that stand out of it
    for _ in range(integer(rng, 2, 12)):
        width = uniform(rng, 0.8, 2.5) * unit
        strands.append((uniform(rng, -half, half), width, uniform(rng, 0.6 * base, 255)))
    steps = int(np.clip(reach / (6 * unit), 4, 60))
    middle = walk(
        rng,
        (x - np.cos(angle) * reach / 2, y - np.sin(angle) * reach / 2),
        angle,
        reach,
        steps,
        rng.normal(0, 0.05),
        log_uniform(rng, 0.001, 0.02),
    )
    for across, width, value in strands:
        shift = np.array([-np.sin(angle) * across, np.cos(angle) * across])
        widths = width * rng.uniform(0.85, 1.15, steps)
        stroke(plate, middle + shift, widths, value * rng.uniform(0.9, 1, steps))
    alpha = drawn(plate, uniform(rng, 0.3, 1.5) * unit)
    return change_tone(rng, canvas, alpha, dark=0.25, opaque=uniform(rng, 0, 0.5), strong=0.5)


def crack(rng: Rng, canvas: Canvas) -> Mask | None:
    size, unit = canvas.size, canvas.unit
    plate = np.zeros((size, size), np.uint8)
    reach = log_uniform(rng, 0.15, 1.2) * size
    width = log_uniform(rng, 0.9, 4.5) * unit
    jitter = uniform(rng, 0.15, 0.5)
    start = random_spot(rng, canvas)
    if not canvas.surface and rng.random() < 0.5:
        edge = edge_spot(rng, canvas)
        start = edge[:2] if edge else start
        todo = [(start, edge[2] if edge else 0.0, reach, width)]
    else:
        angle = uniform(rng, 0, 2 * np.pi)
        todo = [(start, angle, reach / 2, width), (start, angle + np.pi, reach / 2, width)]
    budget = integer(rng, 2, 9)
    while todo and budget > 0:
        budget -= 1
        begin, angle, length, thick = todo.pop(0)
        steps = int(np.clip(length / (3.5 * unit), 3, 50))
        points = walk(rng, begin, angle, length, steps, 0.0, jitter)
        points[1:-1] += rng.normal(0, 0.6 * unit, (steps - 1, 2))
        widths = thick * np.linspace(1, 0.35, steps) * rng.uniform(0.6, 1.4, steps)
        stroke(plate, points, widths, np.full(steps, 255.0))
        for _ in range(integer(rng, 0, 2)):
            fork = tuple(map(float, points[integer(rng, 1, steps - 1)]))
            turn = angle + uniform(rng, 0.4, 1.2) * (1 if rng.random() < 0.5 else -1)
            todo.append(((fork[0], fork[1]), turn, length * uniform(rng, 0.2, 0.6), thick * 0.7))
    alpha = drawn(plate, uniform(rng, 0, 0.7) * unit)
    return change_tone(rng, canvas, alpha, dark=0.88, opaque=uniform(rng, 0.2, 0.9), strong=0.6)


def hole(rng: Rng, canvas: Canvas) -> Mask | None:
    size, unit = canvas.size, canvas.unit
    count = 1 if rng.random() < 0.5 else integer(rng, 2, 10)
    radius = log_uniform(rng, 1.6, 14 if count == 1 else 6) * unit
    spread = log_uniform(rng, 8, 70) * unit
    middle = random_spot(rng, canvas)
    alpha = np.zeros((size, size), np.float32)
    for _ in range(count):
        at = (
            middle
            if count == 1
            else (middle[0] + rng.normal(0, spread), middle[1] + rng.normal(0, spread))
        )
        major = max(1.3 * unit, radius * uniform(rng, 0.5, 1.1))
        radii = (major, max(1.3 * unit, major * uniform(rng, 0.6, 1.0)))
        alpha = np.maximum(
            alpha,
            ragged(
                rng,
                size,
                at,
                radii,
                uniform(rng, 0, np.pi),
                uniform(rng, 0, 0.2),
                uniform(rng, 1, 3) * unit,
            ),
        )
    mask = change_tone(rng, canvas, alpha, dark=0.85, opaque=uniform(rng, 0.5, 1), strong=0.6)
    if mask is not None and rng.random() < 0.5:
        relief(canvas, alpha, uniform(rng, 0.04, 0.2))
    return mask


def blob(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 2.5, 34) * canvas.unit
    radii = (radius, max(1.5 * canvas.unit, radius * uniform(rng, 0.35, 1)))
    soft = uniform(rng, 1, 1 + 0.4 * radius)
    alpha = ragged(
        rng,
        canvas.size,
        random_spot(rng, canvas),
        radii,
        along_grain(rng, canvas, 0.2),
        uniform(rng, 0, 0.35),
        soft,
    )
    return change_tone(rng, canvas, alpha, dark=0.6, opaque=uniform(rng, 0, 1), strong=0.55)


def inclusion(rng: Rng, canvas: Canvas) -> Mask | None:
    """Elongated specks and streaks in loose rows, mostly along the grain."""
    size, unit = canvas.size, canvas.unit
    angle = along_grain(rng, canvas, 0.8)
    count = 1 if rng.random() < 0.25 else integer(rng, 2, 14)
    x, y = random_spot(rng, canvas)
    run, width = log_uniform(rng, 15, 90) * unit, log_uniform(rng, 2, 12) * unit
    soft = uniform(rng, 0, 1.2)
    alpha = np.zeros((size, size), np.float32)
    for _ in range(count):
        along, across = (
            (0.0, 0.0) if count == 1 else (uniform(rng, -run, run), rng.normal(0, width))
        )
        at = (
            x + along * np.cos(angle) - across * np.sin(angle),
            y + along * np.sin(angle) + across * np.cos(angle),
        )
        long = log_uniform(rng, 3, 14 if count > 1 else 60) * unit
        radii = (long, max(1.2 * unit, long * log_uniform(rng, 0.1, 0.5)))
        streak = ragged(
            rng,
            size,
            at,
            radii,
            angle + rng.normal(0, 0.08),
            uniform(rng, 0.1, 0.5),
            uniform(rng, 1, 4) * unit + uniform(rng, 0, soft) * radii[1],
            4,
        )
        alpha = np.maximum(alpha, streak)
    return change_tone(rng, canvas, alpha, dark=0.75, opaque=uniform(rng, 0, 0.8), strong=0.4)


def dent(rng: Rng, canvas: Canvas) -> Mask | None:
    radius = log_uniform(rng, 4, 30) * canvas.unit
    bowl = soft_area(rng, canvas, radius, (0.4, 1), (0, 0.12), (0.8, 1.6))
    mask = visible_mask(canvas, bowl)
    if int(mask.sum()) < 12 * canvas.unit:
        return None
    bowl = blur(bowl, 0.15 * radius) * (canvas.solid > 0.5)
    before = canvas.image.copy()
    need = required_change(canvas, mask)
    amount = log_uniform(rng, 2.2 * need, max(0.5, 3 * need)) * (-1 if rng.random() < 0.5 else 1)
    for _ in range(3):
        relief(canvas, bowl, amount)
        change = np.abs(canvas.image - before).mean(axis=2)
        if float(change[mask].mean()) >= need:
            # The slopes reach beyond the bowl: label what is seen of them, too.
            shown = (change > LABEL_ALPHA * float(change.max())) & (canvas.solid > 0.5)
            return np.asarray((mask | shown) & canvas.part, np.bool_)
        canvas.image[:] = before
        amount *= 1.7
    return None
