"""The paper's models at full size with seeded random weights; see `make test-full`.

To hold opset 23 against a bundle that was built before, name it in CLIPSAM_PAPER_BUNDLE
(built with `--preset paper --random-weights 0`).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipsam.export.bundle.build import BuildOptions, build
from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.clip_umci import ClipUmciGraph
from clipsam.export.graphs.onnx_export import Axes, export_graph
from clipsam.export.graphs.sam_decoder import SamDecoderGraph
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.parity.inputs import (
    clip_umci_cases,
    sam_decoder_cases,
    sam_encoder_cases,
    varied_images,
)
from clipsam.export.parity.tensors import compare
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.presets import PRESETS
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.pipeline import ClipSAM

pytestmark = pytest.mark.full_size

PAPER = PRESETS["paper"]
NOISE = Checkpoints(random_seed=0)
Exported = tuple[str, nn.Module, Mapping[str, Tensor], Axes]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if given := os.environ.get("CLIPSAM_PAPER_BUNDLE"):
        return Bundle.open(given)
    folder = tmp_path_factory.mktemp("paper") / "bundle"
    report = build(BuildOptions(PAPER, folder, NOISE))
    assert all(check.passed for check in report.graphs)
    assert all(check.passed for check in report.end_to_end)
    return Bundle.open(folder)


def test_the_bundle_opens_and_inspects(bundle: Bundle) -> None:
    assert "sam_encoder.onnx.data" in bundle.manifest.files
    assert (bundle.manifest.clip_image_size, bundle.manifest.sam_image_size) == (336, 1024)
    with ClipSAM.open(bundle) as model:
        _, image = next(varied_images(1))
        assert model.inspect(image, "metal nut").score_map.shape == image.shape[:2]


def _graphs() -> Iterator[Exported]:
    """Every graph's module with an example, one model in memory at a time."""
    clip, umci = NOISE.load_clip(PAPER)[0], NOISE.load_umci(PAPER)[0]
    features = ClipFeatures(clip.visual, PAPER.features_list, PAPER.clip_image_size)
    text = np.random.default_rng(0).normal(size=(3, PAPER.umci.text_dim, 2)).astype(np.float32)
    *_, case = clip_umci_cases(PAPER.clip_image_size, text)
    batch = {0: "batch"}
    yield "clip_umci", ClipUmciGraph(features, umci), case.feeds, {"image": batch, "text": batch}
    del clip, umci, features
    gc.collect()
    sam = NOISE.load_sam(PAPER)[0]
    *_, case = sam_encoder_cases(PAPER.sam.image_size)
    yield "sam_encoder", SamEncoderGraph(sam), case.feeds, {}
    *_, case = sam_decoder_cases(PAPER.sam.image_size, PAPER.sam.prompt_dim)
    points = {0: "prompts", 1: "points"}
    axes = {"point_coords": points, "point_labels": points}
    yield "sam_decoder", SamDecoderGraph(sam), case.feeds, axes


def test_opset_23_loads_and_agrees_with_opset_20(bundle: Bundle, tmp_path: Path) -> None:
    for name, module, feeds, axes in _graphs():
        path = tmp_path / f"{name}.onnx"
        with torch.no_grad():
            export_graph(module, feeds, axes, GRAPHS[name][1], path, opset=23)
        arrays = {key: value.numpy() for key, value in feeds.items()}
        found = []
        for graph in (path, bundle.graph_path(name)):
            with open_session(graph) as session:
                found.append(session.run(arrays))
        for output, expected in found[1].items():
            check = compare(name, "opset 23 against 20", output, expected, found[0][output])
            print(f"{name} {output}: opset 23 against 20, relative error {check.max_rel:.1e}")
            assert check.passed
