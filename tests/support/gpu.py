"""Whether this machine has a GPU that a library can use."""

from __future__ import annotations

from pathlib import Path


def has_cuda() -> bool:
    try:
        import onnxruntime
    except ImportError:
        return False
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))
