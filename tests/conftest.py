"""Fixtures that are dear to make, made once.

Nothing here imports torch before a fixture needs it: the runtime's tests run without (the extra
`test`), and those of them that compare with PyTorch skip.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.fake_cuda import FakeCuda
    from support.fake_tensorrt import FakeTensorRT

    from clipsam.research.models.presets import Preset


BUNDLES = {"tiny_bundle", "small_bundle"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs one of the bundles below is slow: an export takes half a minute."""
    for item in items:
        if isinstance(item, pytest.Function) and BUNDLES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def exporter() -> None:
    """Skips what asks for it where the exporter is not installed."""
    for module in ("torch", "open_clip", "onnxscript"):
        reason = f"{module} is not installed, which exporting needs: pip install 'clipsam[export]'"
        pytest.importorskip(module, reason=reason)


def _once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder of a bundle that the workers of pytest-xdist share: the first that asks builds it.

    A bundle appears whole or not at all, so that what is there is complete.
    """
    from clipsam.research.data.file_lock import locked

    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with locked(root / f"{name}.lock", lambda: None):
        if not (root / name).exists():
            build(root / name)
    return root / name


@pytest.fixture(scope="session")
def tiny_bundle(exporter: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the `tiny` bundle, built from the repository's weights as `make demo` does."""
    from clipsam.export.build_engines import main

    def build(folder: Path) -> None:
        assert main(["--threads", "1", "--output", str(folder)]) == 0

    return _once(tmp_path_factory, "tiny", build)


@pytest.fixture(scope="session")
def small_preset(exporter: None) -> Preset:
    """`tiny` with a smaller UMCI and SAM, for tests that export: nodes cost time, not weights."""
    from clipsam.research.models.presets import PRESETS, SamConfig
    from clipsam.runtime.stages.decision import DecisionOptions
    from clipsam.runtime.stages.fusion import FusionOptions
    from clipsam.runtime.stages.prompts import PromptOptions

    return replace(
        PRESETS["tiny"],
        name="small",
        features_list=(1, 2),
        sam=SamConfig(
            image_size=256,
            dim=32,
            depth=2,
            heads=2,
            global_blocks=(1,),
            window=6,  # does not divide the grid of 16, as SAM's 14 does not divide 64
            prompt_dim=64,
            mlp_dim=64,
        ),
        # One size of UMCI's pooling: the other adds nodes of the same kinds.
        umci=replace(PRESETS["tiny"].umci, hidden_dim=16, pool_sizes=(3,)),
        # The paper's options: tiny's were chosen for its trained weights.
        prompts=PromptOptions(points="per_region"),
        fusion=FusionOptions(),
        decision=DecisionOptions(),
    )


@pytest.fixture(scope="session")
def small_bundle(small_preset: Preset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle of `small_preset` with random weights (seed 1)."""
    from clipsam.export.bundle.build import BuildOptions, build
    from clipsam.export.graphs.checkpoints import Checkpoints

    return _once(
        tmp_path_factory,
        "small-random",
        lambda folder: build(
            BuildOptions(small_preset, folder, Checkpoints(random_seed=1), threads=1)
        ),
    )


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small graph with an engine of the stand-ins for TensorRT beside it."""
    from support.session_graph import make_graph
    from support.trt_engines import write_fake_engine

    path = make_graph(tmp_path_factory.mktemp("graph"))
    write_fake_engine(path)
    return path


@pytest.fixture
def box() -> Iterator[tuple[FakeCuda, FakeTensorRT]]:
    """The stand-ins for NVIDIA's two libraries, in place of them."""
    from support.trt_engines import fake_box

    with fake_box() as libraries:
        yield libraries


@pytest.fixture
def cuda(box: tuple[FakeCuda, FakeTensorRT]) -> FakeCuda:
    return box[0]


@pytest.fixture
def trt(box: tuple[FakeCuda, FakeTensorRT]) -> FakeTensorRT:
    return box[1]
