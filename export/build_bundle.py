"""Weights in, a verified bundle out: the stages of `build_engines.py`, one after another."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from clipsam.export.clip_umci import ClipUmciGraph
from clipsam.export.end_to_end import EndToEndCheck, check_end_to_end, run_reference
from clipsam.export.models import Checkpoints
from clipsam.export.parity import GraphCheck, check_graph, summary
from clipsam.export.parity_inputs import (
    GraphCase,
    clip_umci_cases,
    sam_decoder_cases,
    sam_encoder_cases,
    varied_images,
)
from clipsam.export.provenance import content_key, library_versions, source_commit
from clipsam.export.sam_decoder import SamDecoderGraph
from clipsam.export.sam_encoder import SamEncoderGraph
from clipsam.export.staging import check_replaceable, link_or_copy, staged_bundle
from clipsam.export.to_onnx import Axes, export_graph, tensor_specs
from clipsam.research.clip_features import ClipFeatures
from clipsam.research.presets import Preset, get_tokenizer
from clipsam.research.reference import Reference
from clipsam.research.text_prompts import (
    ABNORMAL_STATES,
    DEFAULT_CATEGORIES,
    NORMAL_STATES,
    TEMPLATES,
    text_features,
)
from clipsam.runtime.bundle import (
    GRAPHS,
    TEXT_FEATURES,
    Bundle,
    GraphEntry,
    Manifest,
    write_manifest,
    write_text_features,
)
from clipsam.runtime.errors import BundleError
from clipsam.runtime.files import sha256
from clipsam.runtime.prompts import PromptOptions

PARITY = "parity.json"
_END_TO_END_IMAGES = 4


@dataclass(frozen=True)
class BuildOptions:
    """What to build, from what, and where."""

    preset: Preset
    output: Path
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    categories: tuple[str, ...] = ()  # beside the default list
    precision: str = "fp32"
    opset: int = 20
    threads: int | None = None


@dataclass(frozen=True)
class BuildReport:
    """What was built: the parity checks, and the graphs taken over from the bundle before."""

    graphs: list[GraphCheck]
    end_to_end: list[EndToEndCheck]
    unchanged: tuple[str, ...]


def build(options: BuildOptions) -> BuildReport:
    """Build, check and put in place the bundle of `options`.

    Raises WeightsError, ExportError (a graph or the whole does not agree with PyTorch) or
    OutputError; then `options.output` is as it was.
    """
    check_replaceable(options.output.resolve())  # before the minutes that follow
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with staged_bundle(options.output) as folder:
        return _Build(options, folder).run()


class _Build:
    """One build in its staging folder. Models are freed as soon as nothing needs them."""

    def __init__(self, options: BuildOptions, folder: Path) -> None:
        self.options, self.preset, self.folder = options, options.preset, folder
        self.previous = _open_previous(options.output)
        self.keys: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.checks: list[GraphCheck] = []
        self.unchanged: list[str] = []

    def run(self) -> BuildReport:
        preset, checkpoints = self.preset, self.options.checkpoints
        with _stage("weights", 3) as bar:
            clip, self.digests["clip"] = checkpoints.load_clip(preset)
            bar.update()
            umci, self.digests["umci"] = checkpoints.load_umci(preset)
            bar.update()
            sam, self.digests["sam"] = checkpoints.load_sam(preset)
            bar.update()
        text = self._text_features(clip)
        table = np.stack(list(text.values()))
        write_text_features(self.folder / TEXT_FEATURES, tuple(text), table)
        features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
        del clip  # the text tower is done

        size, sam_size, channels = preset.clip_image_size, preset.sam.image_size, table.shape[1]
        self._graph(
            "clip_umci",
            ClipUmciGraph(features, umci),
            {"image": _pixels(2, size), "text": torch.randn(2, channels, 2)},
            {"image": {0: "batch"}, "text": {0: "batch"}},
            list(clip_umci_cases(size, table)),
            {"clip": self.digests["clip"], "umci": self.digests["umci"]},
        )
        self._graph(
            "sam_encoder",
            SamEncoderGraph(sam),
            {"image": _pixels(1, sam_size), "valid_size": torch.tensor([sam_size, sam_size // 2])},
            {},
            list(sam_encoder_cases(sam_size)),
            {"sam": self.digests["sam"]},
        )
        points = {0: "prompts", 1: "points"}
        grid, dim = sam_size // 16, preset.sam.prompt_dim
        self._graph(
            "sam_decoder",
            SamDecoderGraph(sam),
            {
                "embedding": torch.randn(1, dim, grid, grid),
                "point_coords": torch.rand(3, 7, 2) * sam_size,
                "point_labels": torch.ones(3, 7),
            },
            {"point_coords": points, "point_labels": points},
            list(sam_decoder_cases(sam_size, dim)),
            {"sam": self.digests["sam"]},
        )

        manifest = self._manifest(tuple(text), umci.config)
        reference = Reference(features, umci, sam, text, manifest.prompts)
        images = list(varied_images(_END_TO_END_IMAGES))
        with _stage("reference", len(images)) as bar:
            expected = run_reference(reference, images, bar.update)
        del reference, features, umci, sam  # before the engines take their memory
        gc.collect()
        with _stage("end to end", len(images)) as bar:
            whole = check_end_to_end(
                Bundle(self.folder, manifest, "unwritten"),
                expected,
                self.options.threads,
                bar.update,
            )
        self._finish(manifest, whole)
        return BuildReport(self.checks, whole, tuple(self.unchanged))

    def _text_features(self, clip: Any) -> dict[str, NDArray[np.float32]]:
        """L [C_t,2] of every category; those of the bundle before are taken over if they hold."""
        self.keys["text"] = content_key("text", {"clip": self.digests["clip"]})
        categories = list(dict.fromkeys((*DEFAULT_CATEGORIES, *self.options.categories)))
        known: set[str] = set()
        if self.previous is not None and self._previous_key("text") == self.keys["text"]:
            known = set(self.previous.manifest.categories)
        tokenizer = get_tokenizer()
        table = {}
        with _stage("text features", len(categories)) as bar:
            for category in categories:
                if self.previous is not None and category in known:
                    table[category] = self.previous.text(category)
                else:
                    table[category] = text_features(clip, tokenizer, category).numpy()
                bar.update()
        return table

    def _graph(
        self,
        name: str,
        module: nn.Module,
        example: Mapping[str, Tensor],
        axes: Axes,
        cases: list[GraphCase],
        weights: Mapping[str, str],
    ) -> None:
        """Export one graph and hold it against PyTorch, or take it over if nothing changed."""
        preset, options = self.preset, self.options
        config: dict[str, Any] = {"sam": asdict(preset.sam)}
        if name == "clip_umci":
            config = {
                "clip": preset.clip_name,
                "size": preset.clip_image_size,
                "taps": preset.features_list,
            }
        facts = {"opset": options.opset, "precision": options.precision}
        self.keys[name] = content_key(name, {"weights": weights, "config": config, **facts})
        path = self.folder / f"{name}.onnx"
        with _stage(name, 1 + len(cases)) as bar:
            if self._take_over(name):
                self.unchanged.append(name)
                bar.set_postfix_str("unchanged")
                bar.update(1 + len(cases))
                return
            export_graph(module, example, axes, GRAPHS[name][1], path, options.opset)
            bar.update()
            gc.collect()
            for check in check_graph(name, module, path, _counted(cases, bar), options.threads):
                self.checks.append(check)
        gc.collect()

    def _take_over(self, name: str) -> bool:
        """Link an unchanged graph and its parity figures from the bundle before."""
        if self.previous is None or self._previous_key(name) != self.keys[name]:
            return False
        folder, manifest = self.previous.folder, self.previous.manifest
        try:
            rows = json.loads((folder / PARITY).read_text("utf-8"))["graphs"]
            checks = [GraphCheck(**row) for row in rows if row["graph"] == name]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if not checks or manifest.graphs[name].file != f"{name}.onnx":
            return False
        for file in manifest.files:
            if file.startswith(f"{name}.onnx"):  # the graph, and its weights when beside it
                link_or_copy(folder / file, self.folder / file)
        self.checks.extend(checks)
        return True

    def _previous_key(self, name: str) -> str | None:
        if self.previous is None:
            return None
        keys = self.previous.manifest.provenance.get("graph_keys")
        return keys.get(name) if isinstance(keys, dict) else None

    def _manifest(self, categories: tuple[str, ...], umci: Any) -> Manifest:
        """The manifest, as yet without hashes and parity figures."""
        graphs = {}
        for name in GRAPHS:
            inputs, outputs = tensor_specs(self.folder / f"{name}.onnx")
            graphs[name] = GraphEntry(f"{name}.onnx", inputs, outputs)
        noise = any(digest.startswith("random:") for digest in self.digests.values())
        return Manifest(
            name=f"{self.preset.name} (random weights)" if noise else self.preset.name,
            graphs=graphs,
            files={},
            categories=categories,
            prompts=PromptOptions(points=self.preset.points),
            provenance={
                "preset": self.preset.name,
                "description": self.preset.description,
                "checkpoints": dict(self.digests),  # sha256, or "random:SEED"
                "source_commit": source_commit(),
                "opset": self.options.opset,
                "precision": self.options.precision,
                "versions": library_versions(),
                "umci": asdict(umci),
                "prompt_ensemble": {
                    "normal": NORMAL_STATES,
                    "abnormal": ABNORMAL_STATES,
                    "templates": TEMPLATES,
                },
                "graph_keys": dict(self.keys),
            },
        )

    def _finish(self, manifest: Manifest, whole: list[EndToEndCheck]) -> None:
        figures = {
            "graphs": [check.to_dict() for check in self.checks],
            "end_to_end": [check.to_dict() for check in whole],
        }
        (self.folder / PARITY).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        files = {path.name: sha256(path) for path in sorted(self.folder.iterdir())}
        parity = {
            "graphs": summary(self.checks),
            "end_to_end": {
                "images": len(whole),
                "prompts": sum(check.prompts for check in whole),
                "mask_iou": min(check.mask_iou for check in whole),
                "scores": max(check.scores for check in whole),
                "final_map": max(check.final_map for check in whole),
            },
        }
        write_manifest(self.folder, replace(manifest, files=files, parity=parity))
        Bundle.open(self.folder)  # as its users will


def _open_previous(output: Path) -> Bundle | None:
    """The bundle that is about to be replaced, if it is there and in order."""
    try:
        return Bundle.open(output)
    except BundleError:
        return None


def _pixels(batch: int, size: int) -> Tensor:
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)


def _counted(cases: list[GraphCase], bar: Any) -> Iterator[GraphCase]:
    for case in cases:
        yield case
        bar.update()


@contextmanager
def _stage(title: str, steps: int) -> Iterator[Any]:
    """A progress bar on stderr for one stage; a line or two where stderr is a file."""
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=steps, desc=title, file=sys.stderr, unit="step", mininterval=interval) as bar:
        yield bar
