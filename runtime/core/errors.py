"""Every error the engine raises on purpose.

A message says in one sentence what was wrong and what to do about it. Catch `ClipSAMError`
around a whole inspection, or a branch of the tree to tell causes apart::

    ClipSAMError
    ├── OptionError         an argument out of its range or of the wrong kind; a ValueError, too
    ├── ImageError          an image that cannot be read, or is not HxWx3 uint8
    │   └── DamagedError          its bytes are not all there, or not those that were written
    ├── CategoryError       a category the bundle has no text features for
    ├── BundleError         a bundle that is missing, damaged, altered or of another schema
    ├── CalibrationError    a calibration that is missing, damaged, of another bundle or too small
    ├── SessionError        an engine that cannot be opened or run
    │   ├── MissingBackendError   its library is not installed
    │   ├── ProviderError         the device asked for is not the device that would run
    │   └── EngineError           a TensorRT engine that is missing, damaged, or not for this box
    ├── WeightsError        a checkpoint that is missing, truncated or of another model
    ├── ExportError         a graph that could not be exported or does not agree with PyTorch
    ├── DatasetError        a data set folder that does not have the layout expected
    ├── StoreError          a station's store that is missing, damaged, in use, or of another schema
    │   └── UnreachableError      a database on another machine that cannot be used now
    └── OutputError         a result that could not be written
        └── DiskFullError         because there is no space left
"""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The first line of another library's message, for use inside a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class ClipSAMError(Exception):
    """Base class of every error raised on purpose by `clipsam`."""


class OptionError(ClipSAMError, ValueError):
    """An argument is out of its range, or of the wrong kind."""


class ImageError(ClipSAMError):
    """The image cannot be read, or an array is not HxWx3 uint8 RGB."""


class DamagedError(ImageError):
    """The image file is cut off, or its bytes are not those that were written."""


class CategoryError(ClipSAMError):
    """The bundle has no text features for this category."""


class BundleError(ClipSAMError):
    """The bundle is missing, damaged, altered, or of a schema this version cannot read."""


class CalibrationError(ClipSAMError):
    """A calibration is missing, damaged, or of another bundle; or there are too few good parts."""


class SessionError(ClipSAMError):
    """An engine could not be opened, was fed wrong tensors, or failed while running."""


class MissingBackendError(SessionError):
    """The library that runs this engine is not installed."""


class ProviderError(SessionError):
    """The engine would run on another device than the one asked for."""


class EngineError(SessionError):
    """A TensorRT engine is missing, damaged, or was built for another box or another graph."""


class WeightsError(ClipSAMError):
    """A checkpoint is missing, truncated, or belongs to another model."""


class ExportError(ClipSAMError):
    """A graph could not be exported, or does not agree with PyTorch."""


class DatasetError(ClipSAMError):
    """A data set folder does not have the expected layout."""


class OutputError(ClipSAMError):
    """A result could not be written."""


class StoreError(ClipSAMError):
    """A station's store is missing, damaged, in use by another station, or of another schema."""


class UnreachableError(StoreError):
    """A database on another machine cannot be used now; later it may be."""


class DiskFullError(OutputError):
    """There is no space left to write a result."""
