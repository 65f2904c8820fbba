"""What `bench_latency.py` measures, and how a row's times become lines of the CSV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from latency_row import DEFECTIVE, GOOD

from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import can_run

PERCENTILES = (50, 90, 99)
Line = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One combination of library, device and precision."""

    name: str
    title: str
    kind: str  # see latency_row.Job
    device: str
    precision: str

    @property
    def torch_device(self) -> str:
        """Whose peak its share is taken of."""
        return "cpu" if self.device == "cpu" else "cuda"


ROWS = (
    *(Row(f"torch-eager-{d}-fp32", f"PyTorch eager {d}", "torch-eager", d, "fp32")
      for d in ("cpu", "cuda")),
    *(Row(f"torch-compile-{d}-bf16", f"PyTorch SDPA compile {d}", "torch-compile", d, "bf16")
      for d in ("cpu", "cuda")),
    *(Row(f"{name}-{p}", title, "session", provider, p)
      for name, title, provider in (("ort-cpu", "ONNX Runtime cpu", "cpu"),
                                    ("ort-cuda", "ONNX Runtime cuda", "cuda"),
                                    ("tensorrt", "TensorRT", "tensorrt"))
      for p in PRECISIONS if can_run(provider, p)),
)  # fmt: skip


def lines_of(
    row: Row, report: Mapping[str, Any], flops: Mapping[str, float], peak: float | None, boxes: int
) -> list[Line]:
    """The lines of the CSV for one row; `peak` in operations a second."""
    head: Line = {
        "row": row.name,
        "backend": row.title,
        "device": row.device,
        "precision": row.precision,
    }
    for problem in ("not_run", "failed"):
        if problem in report:
            return [{**head, "status": f"{problem.replace('_', ' ')}: {report[problem]}"}]
    decoder = flops_of_prompts(flops, boxes)
    whole = {
        GOOD: flops.get("clip_umci"),
        DEFECTIVE: None if decoder is None else flops["clip_umci"] + flops["sam_encoder"] + decoder,
    }
    lines = []
    for stage, times in report["times_ms"].items():
        line = {**head, "status": "measured", "stage": stage, "n": len(times)}
        for percentile, value in zip(PERCENTILES, np.percentile(times, PERCENTILES), strict=True):
            line[f"p{percentile}_ms"] = round(float(value), 4)
        line["cold_start_s"] = round(report["cold_start_s"], 3)
        line["first_defective_s"] = round(report["first_defective_s"], 3)
        line["peak_rss_mb"] = round(report["peak_rss_bytes"] / 1e6)
        if "torch_cuda_bytes" in report:
            line["torch_cuda_mb"] = round(report["torch_cuda_bytes"] / 1e6)
        line.update(report.get("gpu", {}))
        work = whole[stage] if stage in whole else flops.get(stage)
        if work is not None:
            line["gflop"] = round(work / 1e9, 3)
            if peak is not None:
                line["peak_tflops"] = round(peak / 1e12, 4)
                line["share"] = round(work / (line["p50_ms"] / 1e3) / peak, 4)
        lines.append(line)
    return lines


def flops_of_prompts(flops: Mapping[str, float], prompts: int) -> float | None:
    """FLOPs of the decoder for any number of prompts: a fixed part and one for each prompt."""
    if not flops:
        return None
    each = (flops["sam_decoder 16"] - flops["sam_decoder 1"]) / 15
    return flops["sam_decoder 1"] + each * (prompts - 1)


def peak_of(row: Row, peaks: Mapping[str, Mapping[str, float | str]]) -> float | None:
    """The fastest matrix product of the row's device: in its precision, or in fp32."""
    here = peaks.get(row.torch_device, {})
    known = [p for p in (here.get(row.precision), here.get("fp32")) if isinstance(p, float)]
    return max(known, default=None)
