"""One row of `bench_sam_cpu.py`: a session of one graph in a process of its own.

`python sam_cpu_row.py JOB` (a JSON object) prints a JSON object. torch is never imported here, so
that the peak of memory is the session's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cpu_row import memory_mb
from latency_row import prompt_arrays

from clipsam.runtime.backends.base import Array
from clipsam.runtime.backends.ort.options import session_arguments, session_options


@dataclass(frozen=True)
class SamJob:
    """What a row runs.

    Attributes:
      graph: an ONNX file of SAM's encoder or decoder.
      output: where the first run's outputs go, `.npz`.
      runs: in order; the first of them is the process's first.
      memory_pattern: onnxruntime's, which `clipsam.runtime` turns off.
      fused_norm: with onnxruntime's SkipLayerNormFusion, which `clipsam.runtime` leaves out.
      prompts: of the decoder's call; 0 for the encoder.
      points: of a prompt, beside its box.
    """

    graph: str
    output: str
    runs: int
    threads: int
    memory_pattern: bool = False
    fused_norm: bool = False
    prompts: int = 0
    points: int = 0


def feeds_of(job: SamJob, shapes: dict[str, list[Any]]) -> dict[str, Array]:
    """Seeded inputs for the graph, whose fixed sizes are in `shapes`."""
    rng = np.random.default_rng(0)
    if job.prompts == 0:
        side = shapes["image"][1]
        image = rng.integers(0, 256, (1, side, side, 3), np.uint8)
        return {"image": image, "valid_size": np.array([side, side * 3 // 4])}
    embedding = rng.standard_normal(shapes["embedding"], np.float32)
    coords, labels = prompt_arrays(job.prompts, job.points, 16 * embedding.shape[2])
    return {"embedding": embedding, "point_coords": coords, "point_labels": labels}


def measure(job: SamJob) -> dict[str, Any]:
    """CPU and wall seconds of loading and of every run; peak memory."""
    import onnxruntime

    options = session_options(onnxruntime, "cpu", job.threads)
    options.enable_mem_pattern = job.memory_pattern
    arguments = session_arguments("cpu")
    if job.fused_norm:
        del arguments["disabled_optimizers"]
    wall, cpu = time.perf_counter(), time.process_time()
    session = onnxruntime.InferenceSession(job.graph, options, **arguments)
    found: dict[str, Any] = {"load_cpu_s": time.process_time() - cpu}
    found["load_wall_s"] = time.perf_counter() - wall
    feeds = feeds_of(job, {each.name: each.shape for each in session.get_inputs()})
    names = [each.name for each in session.get_outputs()]
    found |= {"cpu_s": [], "system_s": [], "wall_s": []}
    for number in range(job.runs):
        wall, cpu, system = time.perf_counter(), time.process_time(), _system_seconds()
        outputs = session.run(names, feeds)
        found["wall_s"].append(time.perf_counter() - wall)
        found["cpu_s"].append(time.process_time() - cpu)
        found["system_s"].append(_system_seconds() - system)
        if number == 0:
            np.savez(Path(job.output), **dict(zip(names, outputs, strict=True)))
    return {**found, **memory_mb()}


def _system_seconds() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


if __name__ == "__main__":
    print(json.dumps(measure(SamJob(**json.loads(sys.argv[1])))))
