"""Which wheels a GPU's libraries come in on this machine: what an error tells to install.

Wheels are built for one major version of CUDA, and each needs a driver; ARM servers and Jetsons
have the same architecture and different ones. docs/gpu_wheels.md has the table and its sources.
What is said of a driver was read from it: nothing here claims that there is a GPU.
"""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

DRIVER = Path("/sys/module/nvidia/version")  # e.g. "580.65.06", where the driver is loaded
TEGRA = Path("/etc/nv_tegra_release")  # only a Jetson has it
# Extra -> the least major version of the driver on Linux; the newest first.
_EXTRAS = {
    "cuda": {"ort-gpu": 580, "ort-gpu-cu12": 525},
    "tensorrt": {"trt": 580, "trt-cu12": 535},
}


def install_advice(provider: str) -> str:
    """What to do for the libraries of "cuda" or "tensorrt"; for the end of a sentence."""
    if TEGRA.exists():
        own = "TensorRT" if provider == "tensorrt" else "CUDA and an onnxruntime-gpu built for it"
        return (
            f"on this Jetson use JetPack's own {own} (a virtual environment made with "
            "--system-site-packages)"
        )
    if platform.machine().lower() in ("aarch64", "arm64"):
        extra = "trt-sbsa" if provider == "tensorrt" else "ort-gpu"
        return f"pip install 'clipsam[{extra}]' (ARM servers, driver 580 or later)"
    extras, driver = _EXTRAS[provider], driver_version()
    if driver is None:
        return " or ".join(
            f"pip install 'clipsam[{extra}]' (driver {least} or later)"
            for extra, least in extras.items()
        )
    for extra, least in extras.items():
        if driver >= least:
            return f"pip install 'clipsam[{extra}]' (this machine's driver is {driver})"
    extra, least = list(extras.items())[-1]
    return (
        f"this machine's driver {driver} is too old, install {least} or later, then pip install "
        f"'clipsam[{extra}]'"
    )


def driver_version() -> int | None:
    """The major version of NVIDIA's driver that is loaded (Linux); None where none tells."""
    if sys.platform == "win32":
        return None
    try:
        found = re.match(r"\d+", DRIVER.read_text())
    except OSError:
        return None
    return int(found[0]) if found else None
