"""The lean package: inspect images with a bundle. Needs NumPy, OpenCV and one engine.

Nothing here imports torch, onnx or Pillow.
"""

from clipsam.runtime.bundle import Bundle
from clipsam.runtime.errors import (
    BundleError,
    CategoryError,
    ClipSAMError,
    EngineError,
    ImageError,
    MissingBackendError,
    OutputError,
    ProviderError,
    SessionError,
)
from clipsam.runtime.image_io import read_image
from clipsam.runtime.line import Inspected
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.result import Region, Result

__all__ = [
    "Bundle",
    "BundleError",
    "CategoryError",
    "ClipSAM",
    "ClipSAMError",
    "EngineError",
    "ImageError",
    "Inspected",
    "MissingBackendError",
    "OutputError",
    "ProviderError",
    "Region",
    "Result",
    "SessionError",
    "read_image",
]
