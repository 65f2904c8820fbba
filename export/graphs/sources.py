"""The three graphs of a preset: modules, example inputs, free axes, and what checks them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from clipsam.export.graphs.calibration import CalibrationImages
from clipsam.export.graphs.clip_umci import ClipUmciGraph
from clipsam.export.graphs.onnx_export import Axes
from clipsam.export.graphs.sam_decoder import SamDecoderGraph
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.parity.inputs import (
    GraphCase,
    clip_umci_cases,
    image_cases,
    sam_decoder_cases,
    sam_encoder_cases,
    varied_images,
)
from clipsam.export.parity.onnx_vs_torch import GoldenCase, golden_cases
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.presets import Preset
from clipsam.research.models.umci import UMCIStages

_TRIAL_IMAGES, _TRIAL_SEED = 4, 101


@dataclass(frozen=True)
class GraphSource:
    """One graph before it is exported.

    Attributes:
      module: float32, what every precision is made from and compared with.
      example, axes: see `onnx_export.export_graph`.
      cases: what every precision but int8 is checked on.
      images: the user's, if there are any; int8 takes its ranges from them and is checked on them
        alone, since it is made for nothing else. The int8 of CPUs is checked on them, too.
      facts: what decides the graph's content beside the code: weights and configuration.
    """

    name: str
    module: nn.Module
    example: Mapping[str, Tensor]
    axes: Axes
    cases: Sequence[GraphCase]
    facts: Mapping[str, Any]
    text: NDArray[np.float32] = field(repr=False)  # [K,C_t,2]
    images: CalibrationImages | None = None

    @cached_property
    def golden(self) -> list[GoldenCase]:
        """What the module says of `cases`."""
        return golden_cases(self.name, self.module, self.cases)

    @cached_property
    def golden_images(self) -> list[GoldenCase]:
        """What the module says of the user's images that were held out."""
        if self.images is None or self.name == "sam_decoder":
            return []
        return golden_cases(self.name, self.module, self._image_cases(self.images.held_out))

    def calibration(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The graph's inputs for every image that ranges are taken from."""
        if self.images is not None:
            yield from _arrays(self._image_cases(self.images.calibration))

    def trial(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The graph's inputs for a few images that no check sees: the user's, or procedural ones.

        On them int8-dynamic tries its MatMuls.
        """
        if self.images is None:
            yield from self.procedural(_TRIAL_IMAGES)
        else:
            yield from _arrays(self._image_cases(self.images.calibration[:_TRIAL_IMAGES]))

    def procedural(self, count: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The graph's inputs for procedural images that no check sees."""
        images = varied_images(count, seed=_TRIAL_SEED)
        yield from _arrays(image_cases(self.name, images, self._image_size, self.text))

    def noise(self, count: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        """The graph's inputs for images that are nothing but noise, other than those of checks."""
        rng, size = np.random.default_rng(_TRIAL_SEED), self._image_size
        images = (
            (f"noise {i}", rng.integers(0, 256, (size, size, 3), np.uint8)) for i in range(count)
        )
        yield from _arrays(image_cases(self.name, images, size, self.text))

    def _image_cases(self, paths: Sequence[Any]) -> Iterator[GraphCase]:
        assert self.images is not None
        images = self.images.read(tuple(paths))
        return image_cases(self.name, images, self._image_size, self.text)

    @property
    def _image_size(self) -> int:
        return int(self.example["image"].shape[1])


def graph_sources(
    preset: Preset,
    features: ClipFeatures,
    umci: UMCIStages,
    sam: Sam,
    text: NDArray[np.float32],
    digests: Mapping[str, str],
    attention: str = "stock",
    images: CalibrationImages | None = None,
) -> Iterator[GraphSource]:
    """The sources of `clip_umci`, `sam_encoder` and `sam_decoder`.

    Args:
      text: L float32 [K,C_t,2] of the categories.
      digests: of the weights of "clip", "umci" and "sam".
      attention: how SAM's encoder writes its attention, see `sam_attention.py`.
      images: the user's, for int8.
    """
    size, sam_size = preset.clip_image_size, preset.sam.image_size
    yield GraphSource(
        "clip_umci",
        ClipUmciGraph(features, umci),
        {"image": _pixels(2, size), "text": torch.randn(2, text.shape[1], 2)},
        {"image": {0: "batch"}, "text": {0: "batch"}},
        list(clip_umci_cases(size, text)),
        {
            "weights": {name: digests[name] for name in ("clip", "umci")},
            "clip": preset.clip_name,
            "size": size,
            "taps": preset.features_list,
        },
        text,
        images,
    )
    sam_facts = {"weights": {"sam": digests["sam"]}, "sam": asdict(preset.sam)}
    yield GraphSource(
        "sam_encoder",
        SamEncoderGraph(sam, attention),
        {"image": _pixels(1, sam_size), "valid_size": torch.tensor([sam_size, sam_size // 2])},
        {},
        list(sam_encoder_cases(sam_size)),
        {**sam_facts, "attention": attention},
        text,
        images,
    )
    points = {0: "prompts", 1: "points"}
    grid, dim = sam_size // 16, preset.sam.prompt_dim
    yield GraphSource(
        "sam_decoder",
        SamDecoderGraph(sam),
        {
            "embedding": torch.randn(1, dim, grid, grid),
            "point_coords": torch.rand(3, 7, 2) * sam_size,
            "point_labels": torch.ones(3, 7),
        },
        {"point_coords": points, "point_labels": points},
        list(sam_decoder_cases(sam_size, dim)),
        sam_facts,
        text,
    )


def _arrays(cases: Iterable[GraphCase]) -> Iterator[Mapping[str, NDArray[Any]]]:
    for case in cases:
        yield {name: tensor.numpy() for name, tensor in case.feeds.items()}


def _pixels(batch: int, size: int) -> Tensor:
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
