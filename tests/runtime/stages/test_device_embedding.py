"""The embedding stays on the device between encoder and decoder: same bits, nothing fetched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.toy_bundle import bright_square, build_toy_bundle

from clipsam.runtime import ClipSAM
from clipsam.runtime.backends.base import DeviceArray
from clipsam.runtime.ops.geometry import Geometry
from clipsam.runtime.stages.prompts import Prompts
from clipsam.runtime.stages.sam import Embedding, Segmenter


def _segmented(bundle: Path, keeps: bool) -> tuple[Embedding, np.ndarray, np.ndarray]:
    """On the CPU by onnxruntime, whose binding is the one that a GPU uses."""
    with ClipSAM.open(bundle, threads=1) as model:
        encoder, decoder = model.sessions["sam_encoder"], model.sessions["sam_decoder"]
        encoder.keeps = decoder.keeps = keeps
        segmenter = Segmenter(encoder, decoder)
        embedding = segmenter.encode(bright_square())
        boxes = np.array([[38, 28, 92, 72], [0, 0, 20, 20]], np.float32)
        points = np.full((2, 5, 2), 50, np.float32)
        masks = segmenter.decode(embedding, Prompts(0.9, 0.5, boxes, points, ()))
        return embedding, masks.logits, masks.scores


def test_an_embedding_that_stays_gives_the_same_masks(tmp_path: Path) -> None:
    bundle = build_toy_bundle(tmp_path / "toy")
    on_host, logits, scores = _segmented(bundle, keeps=False)
    on_device, same_logits, same_scores = _segmented(bundle, keeps=True)
    assert isinstance(on_host.values, np.ndarray)
    assert isinstance(on_device.values, DeviceArray)
    assert isinstance(on_device.geometry, Geometry)
    assert on_device.values.shape == on_host.values.shape
    assert logits.max() > 0
    np.testing.assert_array_equal(same_logits, logits)
    np.testing.assert_array_equal(same_scores, scores)
