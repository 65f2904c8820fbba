"""The lean package: inspect images with a bundle. Needs NumPy, OpenCV and one engine.

What `public` names is the public face; modules below it may change between versions. Nothing here
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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipsam.runtime.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """`__version__`, which is read from the installed package, and what `public` names.

    Imported when it is asked for: the command line then shows its help without NumPy and OpenCV,
    and has a sentence for who interrupts it while they are imported.
    """
    if name == "__version__":
        return _version()
    public = import_module("clipsam.runtime.public")
    if name != "__all__" and name not in public.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(public, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("clipsam.runtime.public").__all__, "__version__"})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("clipsam")
    except metadata.PackageNotFoundError:  # a clone that was not installed
        return "0+unknown"
