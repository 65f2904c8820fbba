"""Weights in, a verified bundle out: the stages of `build_engines.py`, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipsam.export.bundle.graph_files import GraphFiles
from clipsam.export.bundle.parity_report import worst_cases, write_parity
from clipsam.export.bundle.prepare import build_prepare
from clipsam.export.bundle.progress import stage
from clipsam.export.bundle.provenance import content_key, provenance
from clipsam.export.bundle.reuse import PreviousBundle
from clipsam.export.bundle.staging import check_replaceable, keep_engines, staged_bundle
from clipsam.export.bundle.whole import References, check_against, record, run_references
from clipsam.export.graphs.calibration import CalibrationImages
from clipsam.export.graphs.checkpoints import Checkpoints, seed_of
from clipsam.export.graphs.sources import graph_sources
from clipsam.export.parity.inspection import EndToEndCheck
from clipsam.export.parity.onnx_vs_torch import DisagreementError
from clipsam.export.parity.prepare import SIZES, PrepareCheck
from clipsam.export.parity.tensors import GraphCheck
from clipsam.export.precisions.recipes import RECIPES
from clipsam.research.models.clip import ClipFeatures
from clipsam.research.models.naming import word_space
from clipsam.research.models.presets import Preset, get_tokenizer
from clipsam.research.models.prompt_ensemble import DEFAULT_CATEGORIES, text_features
from clipsam.research.models.reference import Reference
from clipsam.runtime.bundle import (
    FLOAT32,
    NAMING,
    PREPARE,
    TEXT_FEATURES,
    Bundle,
    GraphEntry,
    Manifest,
    write_manifest,
    write_naming,
    write_text_features,
)
from clipsam.runtime.core.errors import ExportError
from clipsam.runtime.core.files import sha256

UNWRITTEN = "unwritten"  # the id of a bundle that is being built


@dataclass(frozen=True)
class BuildOptions:
    """What to build, from what, and where.

    Attributes:
      categories: beside the default list; defects: words for defects, likewise.
      precisions: of the graphs; float32 is always built, and fp16 with int8. In int8-dynamic
        and int8-conv float32 stands in for a graph that does not pass.
      attention: how SAM's encoder writes its attention, see `sam_attention.py`.
      calibration: a folder of the user's good images; int8 needs it.
      adapted: what the weights were fine-tuned on and what that brought, for the manifest.
    """

    preset: Preset
    output: Path
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    categories: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    precisions: tuple[str, ...] = (FLOAT32,)
    attention: str = "stock"
    calibration: Path | None = None
    opset: int = 20
    threads: int | None = None
    adapted: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class BuildReport:
    """What was built.

    Attributes:
      graphs, end_to_end: the parity checks.
      unchanged: the graphs taken over from the bundle before.
      refused: a sentence for every graph that another precision stands in for.
      names: whether the bundle names regions.
    """

    graphs: list[GraphCheck]
    end_to_end: list[EndToEndCheck]
    unchanged: tuple[str, ...]
    refused: tuple[str, ...] = ()
    names: bool = True


def build(options: BuildOptions) -> BuildReport:
    """Build, check and put in place the bundle of `options`.

    Raises WeightsError, ExportError (a graph or the whole does not agree with PyTorch) or
    OutputError; then `options.output` is as it was.
    """
    check_replaceable(options.output.resolve())  # before the minutes that follow
    images = None
    if options.calibration is not None:
        images = CalibrationImages.of_folder(options.calibration)
    for precision in options.precisions:
        if images is None and RECIPES[precision].checked_on == "own":
            raise ExportError(
                f"--precision {precision} needs --calibration FOLDER with images of good parts, "
                "from which its ranges are taken."
            )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with staged_bundle(options.output) as folder:
        return _Build(options, images, folder).run()


class _Build:
    """One build in its staging folder. Models are freed as soon as nothing needs them."""

    def __init__(
        self, options: BuildOptions, images: CalibrationImages | None, folder: Path
    ) -> None:
        self.options, self.folder = options, folder
        self.preset = options.checkpoints.trained(options.preset)
        self.images = images
        self.previous = PreviousBundle(options.output)
        self.graphs = GraphFiles(
            folder, self.previous, options.precisions, options.opset, options.threads, images
        )
        self.digests: dict[str, str] = {}
        self.prepared: list[PrepareCheck] = []

    def run(self) -> BuildReport:
        preset, checkpoints = self.preset, self.options.checkpoints
        with stage("weights", 3) as bar:
            clip, self.digests["clip"] = checkpoints.load_clip(preset)
            bar.update()
            umci, self.digests["umci"] = checkpoints.load_umci(preset)
            checkpoints.check_pair(preset, clip, self.digests["clip"])
            bar.update()
            sam, self.digests["sam"] = checkpoints.load_sam(preset)
            bar.update()
        text = self._text_features(clip)
        table = np.stack(list(text.values()))
        write_text_features(self.folder / TEXT_FEATURES, tuple(text), table)
        self._naming(clip)
        features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
        del clip  # the text tower is done

        for source in graph_sources(
            preset, features, umci, sam, table, self.digests, self.options.attention, self.images
        ):
            for precision in self.graphs.precisions:
                self.graphs.add(source, precision)
            del source

        manifest = replace(self._manifest(tuple(text), umci.config), prepare=self._prepare())
        reference = Reference(
            features, umci, sam, text, manifest.prompts, manifest.fusion.mask_weight
        )
        expected = run_references(reference, self.images)
        del reference, features, umci, sam  # before the engines take their memory
        whole = list(self._end_to_end(Bundle(self.folder, manifest, UNWRITTEN), expected))
        manifest = replace(manifest, variants=self.graphs.variants())  # some may have been refused
        record(Bundle(self.folder, manifest, UNWRITTEN), expected, self.options.threads)
        self._finish(manifest, whole)
        sentences = (
            f"{made.graph} stays {RECIPES[made.precision].base} in {made.precision}: {reason}."
            for made, reason in self.graphs.refused.items()
        )
        names = "naming" in self.digests
        return BuildReport(
            self.graphs.checks, whole, tuple(self.graphs.unchanged), tuple(sentences), names
        )

    def _text_features(self, clip: Any) -> dict[str, NDArray[np.float32]]:
        """L [C_t,2] of every category; those of the bundle before are taken over if they hold."""
        self.graphs.keys["text"] = content_key({"clip": self.digests["clip"]})
        categories = list(dict.fromkeys((*DEFAULT_CATEGORIES, *self.options.categories)))
        known = self.previous.text(self.graphs.keys["text"])
        tokenizer = get_tokenizer()
        table = {}
        with stage("text features", len(categories)) as bar:
            for category in categories:
                found = known.get(category)
                if found is None:
                    found = text_features(clip, tokenizer, category).numpy()
                table[category] = found
                bar.update()
        return table

    def _naming(self, clip: Any) -> None:
        """What names regions, where there is a head for this CLIP."""
        options = self.options
        space = word_space(
            self.preset,
            clip,
            get_tokenizer(),
            options.checkpoints.naming,
            adapted=options.adapted is not None,
        )
        if space is None:
            return
        self.digests["naming"] = space.digest
        words = list(dict.fromkeys((*space.learned, *options.defects)))
        write_naming(self.folder / NAMING, words, space.features(words), space.head)

    def _prepare(self) -> GraphEntry:
        """The graph that resizes pictures; in a second, so it is never taken over."""
        sizes = self.preset.clip_image_size, self.preset.sam.image_size
        with stage(PREPARE, len(SIZES)) as bar:
            entry, self.prepared = build_prepare(
                self.folder, *sizes, self.options.opset, self.options.threads, bar.update
            )
        return entry

    def _manifest(self, categories: tuple[str, ...], umci: Any) -> Manifest:
        """The manifest, as yet without hashes and parity figures."""
        noise = any(seed_of(digest) is not None for digest in self.digests.values())
        name = self.preset.name
        adapted = self.options.adapted
        if adapted is not None:
            name += f" adapted to {adapted['category']}"
        return Manifest(
            name=f"{name} (random weights)" if noise else name,
            variants=self.graphs.variants(),
            files={},
            categories=categories,
            prompts=self.preset.prompts,
            fusion=self.preset.fusion,
            decision=self.preset.decision,
            provenance={
                **provenance(self.preset, self.digests),
                "opset": self.options.opset,
                "attention": self.options.attention,
                "umci": asdict(umci),
                "graph_keys": dict(self.graphs.keys),
                **({} if adapted is None else {"adapted": dict(adapted)}),
            },
        )

    def _end_to_end(self, bundle: Bundle, expected: References) -> Iterator[EndToEndCheck]:
        """The whole in every precision; int8 is made for the user's images and judged on them."""
        for precision in self.graphs.built():
            images = [*expected.standard, *expected.own]
            if RECIPES[precision].checked_on == "own":
                images = expected.own
            try:
                yield from check_against(bundle, images, precision, self.options.threads)
            except DisagreementError as error:
                if not RECIPES[precision].optional:
                    raise
                # Graphs that passed alone may fail together: the bundle goes without.
                self.graphs.take_out(precision, error.reason)

    def _finish(self, manifest: Manifest, whole: list[EndToEndCheck]) -> None:
        reasons = {variant.stem: why for variant, why in self.graphs.refused.items()}
        write_parity(
            self.folder, manifest.variants, self.graphs.checks, whole, self.prepared, reasons
        )
        files = {path.name: sha256(path) for path in sorted(self.folder.iterdir())}
        provenance = {**manifest.provenance, "graph_keys": dict(self.graphs.keys)}
        parity = worst_cases(manifest.variants, self.graphs.checks, whole)
        write_manifest(
            self.folder, replace(manifest, files=files, parity=parity, provenance=provenance)
        )
        Bundle.open(self.folder)  # as its users will
        keep_engines(self.options.output, self.folder)
