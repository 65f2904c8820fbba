"""The lean package: inspect images with a bundle. Needs NumPy, OpenCV and one engine.

What is named here is the public face; modules below it may change between versions. Nothing here
imports torch, onnx or Pillow, and an engine's library is imported when a bundle is opened.
"""

import os

# NumPy's OpenBLAS lets its idle threads spin for 0.1 s after a product, on the cores that the next
# engine needs. It reads this once, when NumPy is first imported; who imports NumPy before may set
# it, too. 2^4 cycles is the least.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
# onnxruntime's telemetry writes a device id into the home folder and looks up its vendor's host;
# it is decided when onnxruntime is first imported. No setting turns it on here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from clipsam.runtime.bundle import Bundle
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.core.errors import (
    BundleError,
    CalibrationError,
    CategoryError,
    ClipSAMError,
    EngineError,
    ImageError,
    MissingBackendError,
    OptionError,
    OutputError,
    ProviderError,
    SessionError,
)
from clipsam.runtime.core.result import Region, Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.images.overlay import overlay
from clipsam.runtime.images.reader import read_image, write_png, write_score_tiff
from clipsam.runtime.options import InspectOptions
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stream import Inspected, Inspections


def __getattr__(name: str) -> str:
    """`__version__`, which is read from the installed package only when asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata

    try:
        return metadata.version("clipsam")
    except metadata.PackageNotFoundError:  # a clone that was not installed
        return "0+unknown"


__all__ = [
    "Bundle",
    "BundleError",
    "Calibration",
    "CalibrationError",
    "CategoryError",
    "ClipSAM",
    "ClipSAMError",
    "EngineError",
    "Image",
    "ImageError",
    "InspectOptions",
    "Inspected",
    "Inspections",
    "MissingBackendError",
    "OptionError",
    "OutputError",
    "ProviderError",
    "Region",
    "Result",
    "SessionError",
    "__version__",
    "overlay",
    "read_image",
    "write_png",
    "write_score_tiff",
]
