"""Procedural texture fields: the raw material of synthetic parts, backgrounds and foreign patches.

Every family is a function ``(rng, size, angle) -> float32 size x size``; `texture` picks one by
name and normalises it to zero mean and unit standard deviation. Feature sizes follow ``size``,
so a texture looks the same at 192 and at 512 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Rng = np.random.Generator


def f32(array: Any) -> F32:
    """The array as float32 (OpenCV's stubs do not know the dtype of what they return)."""
    return np.asarray(array, dtype=np.float32)


def uniform(rng: Rng, low: float, high: float) -> float:
    """A Python float, uniform in [low, high)."""
    return float(rng.uniform(low, high))


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A Python float whose logarithm is uniform: every order of magnitude is equally likely."""
    return float(low * (high / low) ** float(rng.random()))


def integer(rng: Rng, low: int, high: int) -> int:
    """A Python int, uniform in [low, high]."""
    return int(rng.integers(low, high + 1))


def choose(rng: Rng, names: tuple[str, ...]) -> str:
    """One of the names."""
    return names[integer(rng, 0, len(names) - 1)]


def blur(field: F32, sigma: float) -> F32:
    """Gaussian blur; wide ones run on a reduced copy, which looks the same and costs far less."""
    if sigma < 0.3:
        return field
    if sigma > 5.0:
        height, width = field.shape[:2]
        factor = min(sigma / 2.5, min(height, width) / 4)
        small = (max(2, round(width / factor)), max(2, round(height / factor)))
        reduced = cv2.resize(field, small, interpolation=cv2.INTER_AREA)
        reduced = cv2.GaussianBlur(reduced, (0, 0), max(0.5, sigma / factor))
        result = f32(cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR))
    else:
        result = f32(cv2.GaussianBlur(field, (0, 0), sigma))
    return result.reshape(field.shape)


def stretch(field: F32, height: int, width: int) -> F32:
    """A small grid of values interpolated to height x width."""
    return f32(cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC))


def noise(rng: Rng, size: int, rows: float, columns: float | None = None) -> F32:
    """Smooth value noise, size x size, with about rows x columns independent cells."""
    count_y = int(np.clip(rows, 2, size))
    count_x = int(np.clip(rows if columns is None else columns, 2, size))
    grid = rng.standard_normal((count_y, count_x), dtype=np.float32)
    return grid if count_y == count_x == size else stretch(grid, size, size)


def fractal(rng: Rng, size: int, cells: float, octaves: int, gain: float, aspect: float = 1) -> F32:
    """Sum of octaves of `noise`; aspect > 1 stretches the features along the rows (vertically)."""
    total = np.zeros((size, size), np.float32)
    weight, power = 1.0, 0.0
    for _ in range(octaves):
        total += np.float32(weight) * noise(rng, size, cells / aspect, cells)
        power += weight * weight
        if cells >= size:
            break
        cells, weight = cells * 2, weight * gain
    return f32(total / np.float32(np.sqrt(power)))


def plane(size: int, angle: float) -> tuple[F32, F32]:
    """Coordinates (u, v), each size x size, in [-0.7, 0.7], turned by angle (radians)."""
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = axis[None, :], axis[:, None]
    return x * cos + y * sin, y * cos - x * sin


def turned(make: Callable[[int], F32], size: int, angle: float) -> F32:
    """A square field turned by angle; made larger first, so that no corner is empty."""
    turn = angle % np.pi
    if min(turn, np.pi - turn) < 0.02:
        return make(size)
    if abs(turn - np.pi / 2) < 0.02:
        return np.ascontiguousarray(make(size).T)
    big = int(1.42 * size) + 2
    centre = (big - 1) / 2
    matrix = np.asarray(
        cv2.getRotationMatrix2D((centre, centre), -float(np.degrees(angle)), 1.0), np.float64
    )
    matrix[:, 2] -= (big - size) / 2
    return f32(cv2.warpAffine(make(big), matrix, (size, size), flags=cv2.INTER_LINEAR))


def _plain(rng: Rng, size: int, angle: float) -> F32:
    return f32(noise(rng, size, integer(rng, 2, 6)) + noise(rng, size, size) * np.float32(0.4))


def _cloudy(rng: Rng, size: int, angle: float) -> F32:
    return fractal(rng, size, log_uniform(rng, 2, 24), 5, uniform(rng, 0.45, 0.9))


def _brushed(rng: Rng, size: int, angle: float) -> F32:
    aspect = log_uniform(rng, 8, 80)
    fine = uniform(rng, 0.3, 1.0)

    def lines(n: int) -> F32:
        return noise(rng, n, n * fine / aspect, n * fine) + fractal(rng, n, 6, 3, 0.8, 12)

    return turned(lines, size, angle)


def _rolled(rng: Rng, size: int, angle: float) -> F32:
    # Hot-rolled sheet: broad bands along the rolling direction under a fine grain.
    bands, grain = log_uniform(rng, 0.2, 3), log_uniform(rng, 0.4, 2)
    aspect, cells = log_uniform(rng, 3, 20), log_uniform(rng, 3, 14)

    def bands_of(n: int) -> F32:
        return fractal(rng, n, cells, 4, 0.7, aspect)

    field = turned(bands_of, size, angle) * np.float32(bands)
    field += noise(rng, size, size * uniform(rng, 0.4, 1)) * np.float32(grain)
    return f32(field + fractal(rng, size, 4, 5, 0.8) * np.float32(0.5))


def _grain(rng: Rng, size: int, angle: float) -> F32:
    return noise(rng, size, size * log_uniform(rng, 0.12, 1.0))


def _asphalt(rng: Rng, size: int, angle: float) -> F32:
    field = noise(rng, size, size * uniform(rng, 0.25, 0.6)) + noise(rng, size, size * 0.9)
    field = np.sign(field) * np.abs(field) ** np.float32(uniform(rng, 1.0, 1.8))
    return f32(f32(field) + fractal(rng, size, 3, 3, 0.6) * np.float32(uniform(rng, 0.1, 0.8)))


def _spots(rng: Rng, size: int, angle: float) -> F32:
    # Granite and terrazzo: two thresholded noises make dark and bright flakes of their own scale.
    cells = size * log_uniform(rng, 0.06, 0.35)
    first = noise(rng, size, cells) > uniform(rng, 0.4, 1.1)
    second = noise(rng, size, cells * uniform(rng, 0.6, 1.8)) > uniform(rng, 0.4, 1.2)
    field = first.astype(np.float32) - second * np.float32(uniform(rng, -0.8, 1.2))
    return f32(cv2.GaussianBlur(field, (0, 0), size / 192 * uniform(rng, 0.4, 1.0)))


def _cells(rng: Rng, size: int, angle: float) -> F32:
    # Leather and peel: distance to the borders of a Voronoi diagram, grooves between cushions.
    count = int(log_uniform(rng, 60, 1200))
    seeds = np.full((size, size), 255, np.uint8)
    seeds[rng.integers(0, size, count), rng.integers(0, size, count)] = 0
    distance = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5)[0]
    pitch = size / np.sqrt(count)
    field = f32(distance) * np.float32(-1 / pitch)
    if rng.random() < 0.5:
        field = field + np.float32(0.3) * noise(rng, size, size * 0.5)
    return blur(field, pitch * 0.12)


def _ridges(rng: Rng, size: int, angle: float) -> F32:
    total = np.zeros((size, size), np.float32)
    cells, weight = log_uniform(rng, 8, 40), 1.0
    for _ in range(3):
        total -= np.float32(weight) * f32(np.abs(noise(rng, size, cells)))
        cells, weight = cells * 2, weight * 0.6
    return total


def _wood(rng: Rng, size: int, angle: float) -> F32:
    u, v = plane(size, angle)
    warp = fractal(rng, size, 2, 3, 0.4) * np.float32(uniform(rng, 0.02, 0.1))
    rings = np.sin((u + warp + v * v * np.float32(uniform(rng, -1, 1))) * log_uniform(rng, 30, 200))
    aspect = uniform(rng, 10, 30)
    fibres = turned(lambda n: noise(rng, n, n * 0.6 / aspect, n * 0.6), size, angle)
    return f32(rings + fibres * np.float32(uniform(rng, 0.4, 1.5)) + warp * np.float32(6))


def _wave(rng: Rng, phase: F32) -> F32:
    # One profile for all periodic families: sine, square-ish, or thin lines.
    wave = np.sin(phase)
    pick = rng.random()
    if pick < 0.35:
        return wave
    if pick < 0.7:
        return f32(np.tanh(wave * np.float32(uniform(rng, 2, 6))))
    return f32(-np.exp(-((wave + 1) ** 2) * np.float32(uniform(rng, 2, 12))))


def _stripes(rng: Rng, size: int, angle: float) -> F32:
    u, _ = plane(size, angle)
    warp = noise(rng, size, 4) * np.float32(log_uniform(rng, 0.0005, 0.01))
    return _wave(rng, (u + warp) * np.float32(log_uniform(rng, 25, 330)))


def _grid(rng: Rng, size: int, angle: float) -> F32:
    u, v = plane(size, angle)
    warp = noise(rng, size, 3) * np.float32(log_uniform(rng, 0.0005, 0.006))
    frequency = log_uniform(rng, 30, 220)
    across = np.float32(frequency * (uniform(rng, 0.5, 2) if rng.random() < 0.4 else 1))
    state = rng.bit_generator.state
    first = _wave(rng, (u + warp) * np.float32(frequency))
    rng.bit_generator.state = state  # the same profile in both directions
    second = _wave(rng, (v + warp) * across)
    return np.minimum(first, second) if rng.random() < 0.6 else first * second


def _woven(rng: Rng, size: int, angle: float) -> F32:
    u, v = plane(size, angle)
    warp = noise(rng, size, 4) * np.float32(0.003)
    frequency = np.float32(log_uniform(rng, 50, 260))
    a, b = (u + warp) * frequency, (v + warp) * frequency
    over = np.sin(a * np.float32(0.5)) * np.sin(b * np.float32(0.5)) > 0
    field = np.where(over, np.abs(np.sin(a)), np.abs(np.sin(b)) - np.float32(uniform(rng, 0, 0.6)))
    return f32(f32(field) + noise(rng, size, size * 0.8) * np.float32(uniform(rng, 0.05, 0.5)))


def _bricks(rng: Rng, size: int, angle: float) -> F32:
    u, v = plane(size, angle)
    rows, aspect = uniform(rng, 2, 9), uniform(rng, 1, 2.5)
    row = np.floor(v * np.float32(rows) + 50)
    shift = np.float32(0.5 if rng.random() < 0.5 else 0)
    across = u * np.float32(rows / aspect) + 50 + row * shift
    gap = np.float32(uniform(rng, 0.02, 0.08))
    joint = np.maximum(
        np.abs(across % 1 - 0.5) * np.float32(aspect) - (aspect - 1) / 2,
        np.abs(v * np.float32(rows) % 1 - 0.5),
    )
    lines = np.clip((joint - (0.5 - gap)) / gap * 2, 0, 1)
    return f32(f32(-lines) + fractal(rng, size, 6, 5, 0.8) * np.float32(uniform(rng, 0.05, 0.3)))


def _flecks(rng: Rng, size: int, angle: float) -> F32:
    # Carpet, felt, paper: short fibres in two directions.
    fine, aspect = uniform(rng, 0.4, 0.9), uniform(rng, 2, 6)
    first = noise(rng, size, size * fine / aspect, size * fine)
    second = noise(rng, size, size * fine, size * fine / aspect)
    return np.maximum(first, second)


FAMILIES: dict[str, Callable[[Rng, int, float], F32]] = {
    "plain": _plain,
    "cloudy": _cloudy,
    "brushed": _brushed,
    "rolled": _rolled,
    "grain": _grain,
    "asphalt": _asphalt,
    "spots": _spots,
    "cells": _cells,
    "ridges": _ridges,
    "wood": _wood,
    "stripes": _stripes,
    "grid": _grid,
    "woven": _woven,
    "bricks": _bricks,
    "flecks": _flecks,
}

# Range of the standard deviation of the brightness (1 = full scale) that looks natural.
CONTRAST: dict[str, tuple[float, float]] = {
    "plain": (0.003, 0.02),
    "cloudy": (0.01, 0.1),
    "brushed": (0.008, 0.07),
    "rolled": (0.01, 0.12),
    "grain": (0.006, 0.08),
    "asphalt": (0.03, 0.13),
    "spots": (0.02, 0.12),
    "cells": (0.015, 0.08),
    "ridges": (0.015, 0.09),
    "wood": (0.015, 0.08),
    "stripes": (0.015, 0.12),
    "grid": (0.02, 0.14),
    "woven": (0.02, 0.1),
    "bricks": (0.02, 0.09),
    "flecks": (0.02, 0.1),
}


def texture(rng: Rng, size: int, family: str, angle: float) -> F32:
    """A field of one family (15 % are mixed with a second), size x size, mean 0, deviation 1."""
    field = FAMILIES[family](rng, size, angle)
    if rng.random() < 0.15:
        other = list(FAMILIES)[integer(rng, 0, len(FAMILIES) - 1)]
        extra = FAMILIES[other](rng, size, angle)
        field = field / (field.std() + np.float32(1e-6))
        field = field + extra * np.float32(uniform(rng, 0.2, 0.7) / (float(extra.std()) + 1e-6))
    mean, deviation = cv2.meanStdDev(field)
    return f32((field - np.float32(mean[0, 0])) * np.float32(1 / (float(deviation[0, 0]) + 1e-6)))
