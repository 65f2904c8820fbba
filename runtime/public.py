"""The public face of `clipsam.runtime`, which hands on what is named here."""

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
from clipsam.runtime.part import Inspected
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stream import Inspections

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
    "overlay",
    "read_image",
    "write_png",
    "write_score_tiff",
]
