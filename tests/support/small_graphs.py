"""What the graphs of the small bundle are made from."""

from __future__ import annotations

import numpy as np

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.sources import GraphSource, graph_sources
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.presets import Preset

NOISE = Checkpoints(random_seed=1)  # the weights of the fixture `small_bundle`


def small_sources(preset: Preset, attention: str = "stock") -> dict[str, GraphSource]:
    """The sources of `small_bundle`'s graphs by name, with text of no words at all."""
    clip, umci = NOISE.load_clip(preset)[0], NOISE.load_umci(preset)[0]
    sam = NOISE.load_sam(preset)[0]
    features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
    text = np.random.default_rng(0).normal(size=(3, umci.config.text_dim, 2)).astype(np.float32)
    digests = dict.fromkeys(("clip", "umci", "sam"), "")
    found = graph_sources(preset, features, umci, sam, text, digests, attention)
    return {source.name: source for source in found}
