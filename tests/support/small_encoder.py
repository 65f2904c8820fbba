"""A small SAM encoder with random weights, and its inputs, for what quantizes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.parity.inputs import GraphCase, image_cases
from clipsam.research.models.presets import Preset
from clipsam.runtime.images.image import Image

_TEXT = np.zeros((1, 1, 2), np.float32)  # SAM's encoder reads none


def encoder_cases(images: Iterable[tuple[str, Image]]) -> Iterator[GraphCase]:
    """Named images as inputs of the encoder."""
    return image_cases("sam_encoder", images, 256, _TEXT)


def encoder_feeds(images: Iterable[tuple[str, Image]]) -> Iterator[dict[str, NDArray[Any]]]:
    """The same as feeds of its ONNX file."""
    for case in encoder_cases(images):
        yield {name: tensor.numpy() for name, tensor in case.feeds.items()}


def make_encoder(preset: Preset, outliers: float = 1.0) -> SamEncoderGraph:
    """SAM's encoder; with `outliers`, two channels of one block are that much larger where a
    MatMul reads them, and its weights as much smaller: the numbers that come out are the same."""
    encoder = SamEncoderGraph(Checkpoints(random_seed=3).load_sam(preset)[0])
    blocks: Any = encoder.encoder.blocks
    block = blocks[0]
    for parameter in (block.norm2.weight, block.norm2.bias):
        parameter.data[:2] *= outliers
    block.mlp.lin1.weight.data[:, :2] /= outliers
    return encoder
