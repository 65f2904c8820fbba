"""How near a graph is to what the device can do: least operations and bytes over measured peaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.core.files import DATA_SUFFIX

BOXES = 4  # of bench_latency's defective part
DEFECTIVE = "defective part"


def bytes_of(folder: Path) -> dict[str, dict[str, int]]:
    """precision -> graph -> bytes that have to move at least once: weights, inputs, outputs.

    What moves between layers depends on what a library fuses and is not in it, so a floor of bytes
    is a lower one.
    """
    bundle = Bundle.open(folder, verify=False)
    points = bundle.manifest.prompts.num_points + 2
    axes = {"batch": 1, "prompts": BOXES, "points": points}
    found: dict[str, dict[str, int]] = {}
    for precision, graphs in bundle.manifest.variants.items():
        for name in GRAPHS:
            entry = graphs[name]
            total = sum(
                path.stat().st_size
                for path in (folder / entry.file, folder / (entry.file + DATA_SUFFIX))
                if path.exists()
            )
            for spec in (*entry.inputs, *entry.outputs):
                sizes = [axes.get(n, 1) if isinstance(n, str) else n for n in spec.shape]
                total += math.prod(sizes) * _WIDTHS.get(spec.dtype, 4)
            found.setdefault(precision, {})[name] = total
    return found


def rooflines(figures: Mapping[str, Any], peaks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every row and graph of a `latency` part: milliseconds, GFLOP, MB, and the floor.

    `peaks` are the figures of the part of that name; without them there are no floors.
    """
    rate = copy_rate(peaks)
    found = []
    for line in figures.get("lines", ()):
        graph, precision = line.get("stage", ""), line.get("precision", "")
        if graph not in GRAPHS or line.get("part") != DEFECTIVE or not line.get("gflop"):
            continue
        gflop, measured = float(line["gflop"]), float(line["p50_ms"])
        moved = figures["bytes"].get(precision, {}).get(graph)
        row = {"row": line["row"], "graph": graph, "ms": measured, "gflop": gflop,
               "mb": moved and moved / 1e6}  # fmt: skip
        peak = peak_rate(peaks, precision)
        if peak and rate and moved:
            computing, moving = gflop / peak, moved / rate / 1e6
            floor = max(computing, moving)
            bound = "arithmetic" if computing >= moving else "memory"
            row |= {"floor_ms": floor, "bound": bound, "share": floor / measured}
        found.append(row)
    return found


def peak_rate(peaks: Mapping[str, Any], precision: str) -> float | None:
    """TFLOP/s of the largest product in this precision, or in fp32 where that is faster."""
    products: Sequence[Mapping[str, Any]] = peaks.get("products", ())
    rates = [
        float(product["peak_tflops"])
        for product in products
        if product["precision"] in (precision, "fp32") and "peak_tflops" in product
    ]
    return max(rates, default=None)


def copy_rate(peaks: Mapping[str, Any]) -> float | None:
    """GB/s of the device's own memory, reading and writing together."""
    rate: float | None = peaks.get("copies", {}).get("device_gb_s")
    return rate


_WIDTHS = {"uint8": 1, "bool": 1, "float16": 2, "int64": 8}
