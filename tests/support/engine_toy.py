"""Engines of the toy bundle by the fake builder: what the tests of building them share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipsam.export.parity.half_emulation import emulate
from clipsam.runtime.bundle import GRAPHS
from support.fake_builder import Workshop, install
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import FakeTensorRT
from support.golden_toy import break_normalisation, rehash
from support.trt_engines import FAKE_BOX, fake_box

Fake = tuple[FakeCuda, FakeTensorRT, Workshop]


@contextmanager
def fake_workshop() -> Iterator[Fake]:
    """A box with a fake GPU and a fake TensorRT that builds."""
    with fake_box() as (cuda, trt):
        yield cuda, trt, install(trt)


def break_encoder(bundle: Path) -> None:
    """Give a toy bundle an fp16 encoder that overflows in its normalisation."""
    plain = bundle.parent / "sam_encoder.fp16.onnx"
    break_normalisation(plain)
    # With every rounding written out, which onnxruntime's CPU provider leaves out.
    emulate(plain, bundle / "sam_encoder.fp16.onnx")
    rehash(bundle)


def engines(bundle: Path) -> set[str]:
    """Every engine that was written, with its folder."""
    return {p.relative_to(bundle / "engines").as_posix() for p in bundle.rglob("*.engine")}


def names(precision: str, *graphs: str) -> set[str]:
    """What `engines` says when all graphs, or those named, were built for the fake box."""
    folder = FAKE_BOX.folder(Path(), precision).name
    return {f"{folder}/{graph}.engine" for graph in graphs or GRAPHS}


def no_leftovers(bundle: Path) -> bool:
    """Whether nothing temporary is there."""
    return not [path for path in bundle.rglob("*") if path.name.startswith(".")]
