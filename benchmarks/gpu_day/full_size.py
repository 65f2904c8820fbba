"""Bundles of the full-size presets with random weights, a graph at a time.

`build_engines.py` holds a bundle against the PyTorch reference picture by picture, which takes
longer than a part may. Here each graph is a part, held against PyTorch in float32 on one input, and
the bundle is put together from what the parts left. Times do not depend on the weights; what such a
bundle says of a picture means nothing, and its name says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

PRESETS = ("mobile", "vit-b", "paper")
SEED = 0
OPSET = 20
_CATEGORIES = ("object", "metal nut")
_PICTURES = 2


def graph(
    *, preset: str, graph: str, attention: str, precisions: Sequence[str], folder: str
) -> dict[str, Any]:
    """A task: export one graph, in float32 held against PyTorch; then the other precisions."""
    from clipsam.export.bundle.variants import Variant, build_variant
    from clipsam.export.precisions.recipes import RECIPES

    target = bundle_folder(folder, preset)
    target.mkdir(parents=True, exist_ok=True)
    (target / "manifest.json").unlink(missing_ok=True)  # it vouches for other files from here on
    start = time.monotonic()
    source = _source(preset, graph, attention)
    source = replace(source, cases=source.cases[:1])
    figures: dict[str, Any] = {"weights": f"random {SEED}", "models_s": time.monotonic() - start}
    for precision in precisions:
        start = time.monotonic()
        if precision == "fp32":
            checks = build_variant(source, precision, target, OPSET, None, _NoBar())
            figures["fp32 against PyTorch"] = max(check.max_rel for check in checks)
        else:  # judged on the device, against float32's outputs
            recipe, path = RECIPES[precision], target / f"{Variant(graph, precision).stem}.onnx"
            next(recipe.load().make(source, precision, path, max(OPSET, recipe.opset), None))
        figures[f"{precision}_s"] = time.monotonic() - start
    return figures


def bundle(
    *, preset: str, attention: str, precisions: Sequence[str], folder: str
) -> dict[str, Any]:
    """A task: the manifest over the graphs that are there, and what engines are judged by."""
    from clipsam.export.bundle.prepare import build_prepare
    from clipsam.export.bundle.variants import Variant
    from clipsam.export.graphs.onnx_export import tensor_specs
    from clipsam.export.parity.golden import GOLDEN, write_golden
    from clipsam.export.parity.golden_record import make_golden, open_all
    from clipsam.export.parity.inputs import varied_images
    from clipsam.research.models.presets import PRESETS as ALL
    from clipsam.runtime.bundle import (
        GRAPHS,
        TEXT_FEATURES,
        Bundle,
        GraphEntry,
        Manifest,
        write_manifest,
        write_text_features,
    )
    from clipsam.runtime.core.files import sha256

    target, of = bundle_folder(folder, preset), ALL[preset]

    def entry(name: str, precision: str) -> GraphEntry:
        file = f"{Variant(name, precision).stem}.onnx"
        return GraphEntry(file, *tensor_specs(target / file), precision)

    write_text_features(target / TEXT_FEATURES, _CATEGORIES, _text(of.umci.text_dim))
    manifest = Manifest(
        name=f"{preset} (random weights)",
        variants={p: {name: entry(name, p) for name in GRAPHS} for p in precisions},
        files={},
        categories=_CATEGORIES,
        prepare=build_prepare(target, of.clip_image_size, of.sam.image_size, OPSET)[0],
        prompts=of.prompts,
        fusion=of.fusion,
        decision=of.decision,
        provenance={
            "preset": preset,
            "checkpoints": dict.fromkeys(("clip", "umci", "sam"), f"random:{SEED}"),
            "attention": attention,
            "opset": OPSET,
            "umci": asdict(of.umci),
        },
    )
    unwritten = Bundle(target, manifest, "unwritten")
    with open_all(unwritten, None) as sessions:
        asked = [
            _asked(unwritten, sessions, name, image, _CATEGORIES[i])
            for i, (name, image) in enumerate(varied_images(_PICTURES))
        ]
        recording = make_golden(unwritten, sessions, asked)
    write_golden(target / GOLDEN, recording)
    files = {p.name: sha256(p) for p in sorted(target.iterdir()) if p.is_file()}
    write_manifest(target, replace(manifest, files=files))
    Bundle.open(target, verify=False)
    sizes = {name: (target / name).stat().st_size for name in files}
    return {"bytes": sum(sizes.values()), "pictures": len(asked)}


def bundle_folder(folder: str, preset: str) -> Path:
    """Where the day keeps a preset's bundle."""
    return Path(folder) / "bundles" / preset


def _source(preset: str, graph: str, attention: str) -> Any:
    from clipsam.export.graphs.checkpoints import Checkpoints
    from clipsam.export.graphs.sources import graph_sources
    from clipsam.research.models.clip import ClipFeatures
    from clipsam.research.models.presets import PRESETS as ALL

    of, noise = ALL[preset], Checkpoints(random_seed=SEED)
    clip, umci, sam = noise.load_clip(of)[0], noise.load_umci(of)[0], noise.load_sam(of)[0]
    features = ClipFeatures(clip.visual, of.features_list, of.clip_image_size)
    digests = dict.fromkeys(("clip", "umci", "sam"), f"random:{SEED}")
    text = _text(of.umci.text_dim)
    sources = graph_sources(of, features, umci, sam, text, digests, attention)
    return next(source for source in sources if source.name == graph)


def _text(size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """L float32 [K,C_t,2] of no words at all, of unit length as CLIP's."""
    text = np.random.default_rng(SEED).standard_normal((len(_CATEGORIES), size, 2))
    return np.asarray(text / np.linalg.norm(text, axis=1, keepdims=True), np.float32)


def _asked(bundle: Any, sessions: Any, name: str, image: Any, category: str) -> Any:
    """A picture with a threshold at which SAM has something to do."""
    from clipsam.export.parity.bundle_vs_reference import check_options
    from clipsam.runtime.stages.rough_map import rough_map

    rough = rough_map(sessions["clip_umci"], image, bundle.text(category))
    return name, image, category, check_options(rough, bundle.manifest.prompts)


class _NoBar:
    """Progress nobody looks at: the part's process writes to a file."""

    total = 0

    def update(self, steps: int = 1) -> None:
        """Nothing."""
