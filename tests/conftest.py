"""Fixtures that are dear to make, made once.

Nothing here imports torch before a fixture needs it: the runtime's tests run without (the extra
`test`), and those of them that compare with PyTorch skip.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.fake_cuda import FakeCuda
    from support.fake_tensorrt import FakeTensorRT

    from clipsam.export.bundle.build import BuildReport
    from clipsam.research.models.presets import Preset


BUNDLES = {"tiny_bundle", "small_bundle", "precise_bundle", "small_graph"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs one of the bundles below is slow: an export takes half a minute."""
    for item in items:
        if isinstance(item, pytest.Function) and BUNDLES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Exports make millions of objects, and every full collection would look at all that was
    imported, too: a twentieth of the time they take."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def exporter() -> None:
    """Skips what asks for it where the exporter is not installed."""
    for module in ("torch", "open_clip", "onnxscript"):
        reason = f"{module} is not installed, which exporting needs: pip install 'clipsam[export]'"
        pytest.importorskip(module, reason=reason)


def _once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """What the workers of pytest-xdist share, a file or a folder: the first that asks builds it.

    It appears whole or not at all, so that what is there is complete.
    """
    from clipsam.research.data.file_lock import locked

    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with locked(root / f"{name}.lock", lambda: None):
        if not (root / name).exists():
            made = factory.mktemp("made") / name
            build(made)
            made.rename(root / name)
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


@pytest.fixture(scope="session")
def precise_bundle(
    small_preset: Preset, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, BuildReport]:
    """The small bundle built on in every precision; the good parts that int8 is made from; and
    the report of that."""
    from clipsam.export.bundle.build import BuildOptions, build
    from clipsam.export.graphs.checkpoints import Checkpoints
    from clipsam.research.synthetic.sample import sample_from_seed
    from clipsam.runtime.images.reader import write_png

    def make(folder: Path) -> None:
        (folder / "good").mkdir(parents=True)
        for i in range(4):
            image = sample_from_seed(900 + i, 192, defect_rate=0.0).image
            write_png(folder / "good" / f"{i}.png", image)
        bundle = folder / "bundle"
        shutil.copytree(small_bundle, bundle)
        (bundle / "engines" / "sm89").mkdir(parents=True)
        (bundle / "engines" / "sm89" / "clip_umci.engine").write_bytes(b"ftrt")
        options = BuildOptions(
            small_preset,
            bundle,
            Checkpoints(random_seed=1),
            precisions=("int8", "bf16"),
            calibration=folder / "good",
            threads=1,
        )
        (folder / "report").write_bytes(pickle.dumps(build(options)))

    folder = _once(tmp_path_factory, "precise", make)
    report = pickle.loads((folder / "report").read_bytes())
    return folder / "bundle", folder / "good", report


@pytest.fixture(scope="session")
def small_graph(
    small_preset: Preset,
    small_bundle: Path,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str, int], Path]:
    """Graph, precision and opset -> the file of `small_preset`'s graph with `small_bundle`'s
    weights: the bundles', as far as they have it, so that each is exported once for all tests."""
    from support.small_graphs import small_sources

    from clipsam.export.precisions.recipes import RECIPES
    from clipsam.export.quantization import floating

    def get(graph: str, precision: str, opset: int) -> Path:
        if (precision, opset) == ("fp32", 20):
            return small_bundle / f"{graph}.onnx"
        if opset == max(20, RECIPES[precision].opset):
            bundle: Path = request.getfixturevalue("precise_bundle")[0]
            return bundle / f"{graph}.{precision}.onnx"

        def export(path: Path) -> None:
            source = small_sources(small_preset)[graph]
            next(floating.make(source, precision, path, opset, 1))

        return _once(tmp_path_factory, f"{graph}.{precision}.{opset}.onnx", export)

    return get


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
