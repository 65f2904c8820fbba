"""Where the figures of `bench_latency.py` were taken: machine, versions, date, and GPU clocks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import tempfile
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

DISTRIBUTIONS = (
    "clipsam", "numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "torch", "open_clip_torch", "segment-anything",
)  # fmt: skip
_SAMPLED = ("memory.used", "clocks.sm", "clocks.mem")  # MiB, MHz, MHz
_PERIOD_MS = 100


def machine(threads: int | None) -> dict[str, str | int | float]:
    """Facts that go into every row of the CSV."""
    gpu, driver, top = _query("name", "driver_version", "clocks.max.sm")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "threads": threads or "all",
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu or "none that nvidia-smi tells of",
        "driver": driver,
        "sm_clock_max_mhz": top,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {v}" for name in DISTRIBUTIONS if (v := _version(name))),
    }


class GpuMonitor:
    """Samples the GPU's memory and clocks with nvidia-smi while it is entered.

    Attributes (empty where nvidia-smi is not there or does not tell):
      figures: `gpu_memory_mb`, what the whole GPU used at most above what it used before;
        `sm_clock_mhz` and `memory_clock_mhz`, medians.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def __enter__(self) -> GpuMonitor:
        self._before = _number(_query("memory.used")[0])
        self._said = tempfile.TemporaryFile("w+")
        command = [*_smi(*_SAMPLED), f"--loop-ms={_PERIOD_MS}"]
        self._process: subprocess.Popen[str] | None = None
        with suppress(OSError):
            self._process = subprocess.Popen(
                command, stdout=self._said, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._said.seek(0)
        samples = [[_number(field) for field in line.split(",")] for line in self._said]
        self._said.close()
        whole = [sample for sample in samples if len(sample) == len(_SAMPLED)]
        memory, sm, mem = (
            [number for sample in whole if (number := sample[i]) is not None]
            for i in range(len(_SAMPLED))
        )
        if memory and self._before is not None:
            self.figures["gpu_memory_mb"] = max(memory) - self._before
        for name, clocks in (("sm_clock_mhz", sm), ("memory_clock_mhz", mem)):
            if clocks:
                self.figures[name] = statistics.median(clocks)


def _smi(*fields: str) -> list[str]:
    """The command that asks about the first GPU that CUDA sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    query = f"--query-gpu={','.join(fields)}"
    return ["nvidia-smi", f"--id={visible or 0}", query, "--format=csv,noheader,nounits"]


def _query(*fields: str) -> list[str]:
    """What nvidia-smi says of each field, "" where it says nothing."""
    try:
        done = subprocess.run(
            _smi(*fields), capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return [""] * len(fields)
    values = [value.strip() for value in done.strip().split(",")]
    return values if len(values) == len(fields) else [""] * len(fields)


def _number(text: str) -> float | None:
    """None for "[N/A]" and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
