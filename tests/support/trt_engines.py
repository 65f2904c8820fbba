"""Engines for tests: built by the real TensorRT on a GPU, or made for the fake one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest

from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.backends.trt import cuda as cuda_memory
from clipsam.runtime.backends.trt.engine_store import Box, fingerprint, write_engine
from clipsam.runtime.backends.trt.library import _make_logger
from clipsam.runtime.backends.trt.sidecar import Profile, Sidecar
from clipsam.runtime.core.files import digest_onnx
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import LARGEST, VERSION, FakeTensorRT, make_plan

FAKE_BOX = Box(VERSION, (8, 9), "Fake GPU")
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    16: "bfloat16",
}


@contextmanager
def fake_box(**options: Any) -> Iterator[tuple[FakeCuda, FakeTensorRT]]:
    """A process with fake CUDA and TensorRT libraries instead of real ones."""
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_memory, "load_libraries", lambda: iter([cuda]))
        patch.setitem(sys.modules, "tensorrt", trt)
        _make_logger.cache_clear()
        yield cuda, trt
        _make_logger.cache_clear()


def specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) of an ONNX file."""
    graph = onnx.load(path, load_external_data=False).graph
    return tuple(map(_spec, graph.input)), tuple(map(_spec, graph.output))


def profiles(inputs: tuple[TensorSpec, ...]) -> dict[str, Profile]:
    """From 1 to LARGEST for every free axis."""

    def bound(spec: TensorSpec, size: int) -> tuple[int, ...]:
        return tuple(size if isinstance(axis, str) else axis for axis in spec.shape)

    return {
        spec.name: Profile(*(bound(spec, size) for size in (1, 4, LARGEST)))
        for spec in inputs
        if any(isinstance(axis, str) for axis in spec.shape)
    }


def make_sidecar(path: Path, plan: bytes, box: Box = FAKE_BOX, **changes: Any) -> Sidecar:
    """The sidecar of an engine of the ONNX file at `path`."""
    inputs, outputs = specs(path)
    fields = {
        "graph": path.name.split(".")[0],
        "precision": "fp32",
        "tensorrt": box.tensorrt,
        "compute_capability": box.compute_capability,
        "gpu": box.gpu,
        "driver": "13.0",
        "onnx_sha256": digest_onnx(path),
        **fingerprint(plan),
        "inputs": inputs,
        "outputs": outputs,
        "profiles": profiles(inputs),
    }
    return Sidecar(**{**fields, **changes})


def write_fake_engine(path: Path, box: Box = FAKE_BOX, **changes: Any) -> Path:
    """Write an engine of the ONNX file at `path` for the fake TensorRT, its sidecar changed."""
    plan = make_plan(path.read_bytes(), box.tensorrt)
    sidecar = make_sidecar(path, plan, box, **changes)
    return write_engine(box.folder(path.parent, sidecar.precision), plan, sidecar)


def write_real_engine(path: Path) -> None:
    """Build an engine of the ONNX file at `path` on this machine's GPU. Skips the test where
    TensorRT refuses the graph."""
    import tensorrt as trt

    from clipsam.runtime.backends.trt.library import tensorrt_logger

    logger = tensorrt_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        pytest.skip(f"TensorRT cannot parse this graph: {logger.words.last()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    ranges = profiles(specs(path)[0])
    if ranges:
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        pytest.skip(f"TensorRT cannot build this graph: {logger.words.last()}")
    cuda = cuda_memory.Cuda()
    box = Box(trt.__version__, cuda.compute_capability, cuda.gpu_name)
    plan = bytes(built)
    write_engine(box.folder(path.parent, "fp32"), plan, make_sidecar(path, plan, box))


def has_tensorrt() -> bool:
    """Whether TensorRT is installed and there is a GPU."""
    try:
        import tensorrt  # noqa: F401
    except Exception:
        return False
    try:
        cuda_memory.Cuda()
    except Exception:
        return False
    return True


def _spec(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(
        axis.dim_param if axis.HasField("dim_param") else axis.dim_value for axis in kind.shape.dim
    )
    return TensorSpec(value.name, _DTYPES[kind.elem_type], shape)
