"""What this machine is, and which GPU was seen by whom: nothing is taken for granted."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.machine import machine
from harness.peaks import product_graph

from clipsam.runtime.core.errors import ClipSAMError, first_line

# Wheels that decide whether a GPU can be used at all; with NVIDIA's own libraries, by prefix.
_PREFIXES = ("nvidia-", "tensorrt", "onnxruntime", "torch", "timm", "polygraphy", "onnx", "triton")


def look() -> dict[str, Any]:
    """The figures of the part `machine`: what `harness.machine` says, and

    `seen`: by whom a GPU was seen, and what it was called ({} where nobody saw one);
    `unseen`: why the others saw none; `libraries`: wheels and their versions; `nvidia_smi`: its
    whole table; `commit`: of this clone.
    """
    seen, unseen = {}, {}
    looks: dict[str, Callable[[], str]] = {
        "nvidia-smi": _by_smi,
        "the CUDA runtime": _by_cuda,
        "PyTorch": _by_torch,
        "ONNX Runtime": _by_onnxruntime,
        "TensorRT": _by_tensorrt,
    }
    for who, ask in looks.items():
        try:
            seen[who] = ask()
        except Exception as error:  # whatever is broken here is what we came to find out
            unseen[who] = _words(error)
    found = reversed(list(importlib.metadata.distributions()))  # the first is what is imported
    names = {d.metadata["Name"]: d.version for d in found}
    libraries = {
        name: version
        for name, version in sorted(names.items())
        if name and name.lower().replace("_", "-").startswith(_PREFIXES)
    }
    return {
        **machine(None),
        "seen": seen,
        "unseen": unseen,
        "libraries": libraries,
        "nvidia_smi": _output("nvidia-smi"),
        "commit": _output(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
        ),
    }


def _by_smi() -> str:
    said = _output("nvidia-smi", "-L")
    if not said.startswith("GPU "):
        raise RuntimeError(said or "there is no nvidia-smi")
    return said.splitlines()[0]


def _by_cuda() -> str:
    from clipsam.runtime.backends.trt.cuda import Cuda

    cuda = Cuda()
    major, minor = cuda.compute_capability
    return (
        f"{cuda.gpu_name}, compute capability {major}.{minor}, CUDA {cuda.driver_version} at most"
    )


def _by_torch() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds no CUDA device")
    torch.ones(8, device="cuda").sum().item()  # a driver that is too old fails here
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 1e9:.1f} GB, torch {torch.__version__}"


def _by_onnxruntime() -> str:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError(f"onnxruntime {onnxruntime.__version__} is not the one for GPUs")
    import tempfile

    from clipsam.runtime.backends.base import open_session

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        path.write_bytes(product_graph(8).SerializeToString())
        with open_session(path, "cuda"):
            return f"onnxruntime {onnxruntime.__version__} opened a graph on CUDA"


def _by_tensorrt() -> str:
    from clipsam.runtime.backends.trt.library import import_tensorrt, tensorrt_logger

    trt = import_tensorrt()
    logger = tensorrt_logger(trt)
    try:
        trt.Builder(logger)
    except TypeError as error:  # a factory that returned nothing
        raise RuntimeError(f"TensorRT {trt.__version__}: {logger.words.last()}") from error
    return f"TensorRT {trt.__version__} made a builder"


def _output(*command: str) -> str:
    """What a command says, "" where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


def _words(error: Exception) -> str:
    told = isinstance(error, (ClipSAMError, RuntimeError))
    return first_line(error) if told else f"{type(error).__name__}: {first_line(error)}"
