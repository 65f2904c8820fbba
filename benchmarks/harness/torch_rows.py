"""The PyTorch rows of `bench_latency.py`.

- "eager" is what a user would write: open_clip's tower and UMCI, then segment-anything's
  `SamPredictor` where there is something to segment, whose embedding stays on the device and whose
  masks come at image size. PyTorch's own defaults hold, so that on a GPU cuDNN may round
  convolutions to TF32.
- "sdpa" is PyTorch at its best that changes no weight: the engine's own work between the graphs,
  attention in `scaled_dot_product_attention`, SAM's with its relative positions as a mask.
- "compile" compiles these modules as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from torch import Tensor, nn

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.clip_umci import ClipUmciGraph
from clipsam.export.graphs.sam_decoder import SamDecoderGraph
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.quantization.half import DTYPES, HalfPrecision
from clipsam.research.models.clip import ClipFeatures, normalise
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.models.reference import fuse
from clipsam.research.models.umci import UMCIStages
from clipsam.runtime.backends.base import Array, Session, TensorSpec
from clipsam.runtime.bundle import TEXT_FEATURES
from clipsam.runtime.core.errors import ProviderError
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.prompts import FOREGROUND, Prompts, find_prompts
from harness.agreement import Outcome
from harness.clock import Clock
from harness.planted import planted_map
from harness.rows import Row
from harness.subjects import EngineSubject, Plan, Subject


def load_torch(row: Row, plan: Plan, threads: int | None) -> Subject:
    """The row's subject; every thread's gradients are off from here on."""
    if threads is not None:
        torch.set_num_threads(threads)
    need_device(row.device)
    torch.set_grad_enabled(False)
    return EagerSubject(row, plan) if row.kind == "eager" else modules_subject(row, plan)


def need_device(device: str) -> None:
    """Raise ProviderError where torch has no GPU and one is asked for."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError("PyTorch finds no CUDA device here.")


def load_models(plan: Plan, device: str) -> tuple[Preset, ClipFeatures, UMCIStages, Any]:
    """The preset's models with their weights, in fp32 on the device."""
    preset = PRESETS[plan.preset]
    paths = {name: Path(file) for name, file in plan.weights.items()}
    checkpoints = Checkpoints(**paths, random_seed=plan.random_weights)
    clip, umci, sam = (
        load(preset)[0].to(device)
        for load in (checkpoints.load_clip, checkpoints.load_umci, checkpoints.load_sam)
    )
    features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
    return preset, features.to(device).eval(), umci.eval(), sam


def text_features(plan: Plan, preset: Preset) -> Array:
    """L float32 [C_t,2] of the bundle's first category; of none where there is no bundle."""
    path = Path(plan.text_of) / TEXT_FEATURES
    if path.exists():
        with np.load(path) as file:
            found: Array = file["features"][0]
        return found
    text = np.random.default_rng(0).standard_normal((preset.umci.text_dim, 2)).astype(np.float32)
    return np.asarray(text / np.linalg.norm(text, axis=0))


class EagerSubject:
    """The method as plain PyTorch, its networks timed as the engine's graphs are.

    As there, SAM's resizing and masks at image size are outside them.
    """

    def __init__(self, row: Row, plan: Plan) -> None:
        self.device = row.device
        self.clock = Clock(torch.cuda.synchronize if row.device == "cuda" else lambda: None)
        self.preset, self.features, self.umci, sam = load_models(plan, row.device)
        self.predictor = SamPredictor(sam)
        self.text = torch.from_numpy(text_features(plan, self.preset))[None].to(row.device)
        for module, name in (
            (sam.image_encoder, "sam_encoder"),
            (sam.prompt_encoder, "sam_decoder"),
            (sam.mask_decoder, "sam_decoder"),
        ):
            _time(module, name, self.clock)
        self.plant(0)

    def plant(self, boxes: int) -> None:
        self.planted = planted_map(self.preset.clip_image_size, boxes)

    def inspect(self, image: Image) -> int:
        _, rough, prompts, masks, scores = self._segment(image)
        total = torch.from_numpy(rough).to(self.device)
        if len(prompts):
            total = total + (masks * scores[..., None, None]).sum(dim=(0, 1))
        (total / 4).clip(0, 1).cpu().numpy()
        return len(prompts)

    def outcome(self, image: Image) -> Outcome:
        own, rough, prompts, *segmented = self._segment(image)
        if not len(prompts):
            raise RuntimeError("the picture was given no prompts")
        masks, scores = (tensor.cpu().numpy() for tensor in segmented)
        final = fuse(rough, masks, scores, self.preset.fusion.mask_weight)
        decision = decide(final, prompts, self.preset.decision, refined=True)
        packed = np.packbits(masks.reshape(-1, rough.size), axis=1)
        return Outcome(own[0], packed, scores, final, decision.verdict)

    def rough_map(self, small: Array) -> NDArray[np.float32]:
        """CLIP's and UMCI's own map [1,S,S] of CLIP's input."""
        with self.clock("clip_umci"):
            taps = self.features(normalise(torch.from_numpy(small).to(self.device)))
            found = self.umci.rough_map(taps, self.text, self.preset.clip_image_size)
            rough: NDArray[np.float32] = found.cpu().numpy()
        return rough

    def _segment(
        self, image: Image
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], Prompts, Tensor, Tensor]:
        """The own map; the planted one at image size, its prompts, their masks and scores."""
        height, width = image.shape[:2]
        own = self.rough_map(clip_input(image, self.preset.clip_image_size))
        resized = cv2.resize(self.planted, (width, height), interpolation=cv2.INTER_LINEAR)
        rough = np.asarray(resized, np.float32)
        prompts = find_prompts(rough, self.preset.prompts)
        if not len(prompts):
            return own, rough, prompts, torch.empty(0), torch.empty(0)
        self.predictor.set_image(image)
        transform = self.predictor.transform
        points = transform.apply_coords_torch(torch.from_numpy(prompts.points), (height, width))
        boxes = transform.apply_boxes_torch(torch.from_numpy(prompts.boxes), (height, width))
        labels = torch.full(points.shape[:2], FOREGROUND, device=self.device)
        masks, scores, _ = self.predictor.predict_torch(
            points.to(self.device), labels, boxes.to(self.device), multimask_output=True
        )
        return own, rough, prompts, masks, scores


def _time(module: nn.Module, name: str, clock: Clock) -> None:
    """Time every call of a module as a stage."""
    module.register_forward_pre_hook(lambda *_: clock.start(name))
    module.register_forward_hook(lambda *_: clock.stop(name))


class TorchSession(Session):
    """A graph's module behind the interface of an engine: arrays of the host in and out."""

    def __init__(
        self, module: nn.Module, device: str, inputs: list[TensorSpec], outputs: list[TensorSpec]
    ) -> None:
        self.module, self.device = module, device
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self.provider, self.precision = device, "fp32"

    def _run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        found = self.module(
            *(torch.from_numpy(feeds[name]).to(self.device) for name in self.inputs)
        )
        outputs = found if isinstance(found, tuple) else (found,)
        named = zip(self.outputs, outputs, strict=True)
        return {name: value.cpu().numpy() for name, value in named if name in wanted}


def modules_subject(row: Row, plan: Plan) -> EngineSubject:
    """The engine on PyTorch's modules, as they are or compiled."""
    preset, features, umci, sam = load_models(plan, row.device)
    modules = graph_modules(features, umci, sam, "mask")
    if row.precision in DTYPES:
        modules = {
            name: HalfPrecision(module, row.precision, fused_attention=True)
            for name, module in modules.items()
        }
    if row.kind == "compile":
        modules = {n: cast(nn.Module, torch.compile(m, fullgraph=True)) for n, m in modules.items()}
    specs, text = graph_specs(preset), text_features(plan, preset)
    manifest = SimpleNamespace(
        prompts=preset.prompts,
        fusion=preset.fusion,
        decision=preset.decision,
        categories=("object",),
    )
    bundle = SimpleNamespace(manifest=manifest, text=lambda category: text, id="", namer=None)
    sessions = {n: TorchSession(m, row.device, *specs[n]) for n, m in modules.items()}
    return EngineSubject(bundle, sessions)


def graph_modules(
    features: ClipFeatures, umci: UMCIStages, sam: Any, attention: str
) -> dict[str, nn.Module]:
    """The modules that the bundle's graphs are exported from."""
    return {
        "clip_umci": ClipUmciGraph(features, umci),
        "sam_encoder": SamEncoderGraph(sam, attention),
        "sam_decoder": SamDecoderGraph(sam),
    }


def graph_specs(preset: Preset) -> dict[str, tuple[list[TensorSpec], list[TensorSpec]]]:
    """Inputs and outputs of the three graphs, in the order of their modules' arguments."""
    size, text = preset.clip_image_size, preset.umci.text_dim
    side, dim, grid = preset.sam.image_size, preset.sam.prompt_dim, preset.sam.image_size // 16
    embedding = TensorSpec("embedding", "float32", (1, dim, grid, grid))
    points = ("prompts", "points")
    return {
        "clip_umci": (
            [TensorSpec("image", "uint8", ("batch", size, size, 3)),
             TensorSpec("text", "float32", ("batch", text, 2))],
            [TensorSpec("rough", "float32", ("batch", size, size)),
             TensorSpec("tokens", "float16", ("batch", "tokens", preset.umci.visual_dim))],
        ),
        "sam_encoder": (
            [TensorSpec("image", "uint8", (1, side, side, 3)),
             TensorSpec("valid_size", "int64", (2,))],
            [embedding],
        ),
        "sam_decoder": (
            [embedding, TensorSpec("point_coords", "float32", (*points, 2)),
             TensorSpec("point_labels", "float32", points)],
            [TensorSpec("logits", "float32", ("prompts", 3, 4 * grid, 4 * grid)),
             TensorSpec("scores", "float32", ("prompts", 3))],
        ),
    }  # fmt: skip
