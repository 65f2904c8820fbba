"""The lean package: inspect images with a bundle. Needs NumPy, OpenCV and one engine.

Nothing here imports torch, onnx or Pillow.
"""

import os

# NumPy's OpenBLAS lets its idle threads spin for 0.1 s after a product, on the cores that the next
# engine needs. It reads this once, when NumPy is first imported; who imports NumPy before may set
# it, too. 2^4 cycles is the least.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from clipsam.runtime.bundle import Bundle
from clipsam.runtime.core.errors import (
    BundleError,
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
from clipsam.runtime.images.reader import read_image
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stream import Inspected, Inspections

__all__ = [
    "Bundle",
    "BundleError",
    "CategoryError",
    "ClipSAM",
    "ClipSAMError",
    "EngineError",
    "ImageError",
    "Inspected",
    "Inspections",
    "MissingBackendError",
    "OptionError",
    "OutputError",
    "ProviderError",
    "Region",
    "Result",
    "SessionError",
    "read_image",
]
