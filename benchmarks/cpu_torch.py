"""The PyTorch rows of `bench_cpu.py`.

- "torch-eager" is `latency_torch.EagerSubject`: open_clip, UMCI and `SamPredictor` in fp32, one
  call after another, SAM only where there is something to segment.
- "torch-sdpa" is PyTorch at its best that changes no weight: the engine's own work between the
  graphs, SAM's attention in `scaled_dot_product_attention` with its relative positions as a mask,
  in fp32 or bf16. "torch-compile" compiles these modules as a whole.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from cpu_row import ClockedSessions, CpuJob, Outcome, StageClock, Subject
from latency_torch import (
    EagerSubject,
    TorchSession,
    graph_modules,
    graph_specs,
    load_models,
    module_bundle,
    random_text,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from clipsam.export.quantization.half import DTYPES, HalfPrecision
from clipsam.research.models.presets import Preset
from clipsam.research.models.reference import fuse
from clipsam.runtime.backends.base import Array, Session
from clipsam.runtime.bundle import TEXT_FEATURES
from clipsam.runtime.core.result import ANOMALOUS, GOOD
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.prompts import find_prompts


def load(job: CpuJob) -> Subject:
    """The row's subject; every thread's gradients are off from here on."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    return ClockedEager(job) if job.kind == "torch-eager" else module_sessions(job)


def bundle_text(job: CpuJob, preset: Preset) -> Array:
    """L float32 [C_t,2] of the bundle's first category, as the engine's rows have it."""
    path = Path(job.bundle) / TEXT_FEATURES
    if not path.exists():
        return random_text(preset)
    with np.load(path) as file:
        text: Array = file["features"][0]
    return text


class ClockedEager(EagerSubject):
    """The method as plain PyTorch, its three networks timed as the engine's graphs are.

    As there, SAM's resizing and masks at image size are outside them.
    """

    def __init__(self, job: CpuJob) -> None:
        self.clock = StageClock()
        super().__init__(job)
        self.text = torch.from_numpy(bundle_text(job, self.preset))[None]
        sam = self.predictor.model
        for module, name in (
            (sam.image_encoder, "sam_encoder"),
            (sam.prompt_encoder, "sam_decoder"),
            (sam.mask_decoder, "sam_decoder"),
        ):
            _clock(module, name, self.clock)
        self._own: NDArray[np.float32] | None = None
        self._segmented: tuple[Tensor, Tensor] | None = None

    def plant_map(self, rough: NDArray[np.float32]) -> None:
        self.planted = rough

    @property
    def map_size(self) -> int:
        return self.preset.clip_image_size

    def _rough(self, small: Array) -> Array:
        with self.clock("clip_umci"):
            self._own = super()._rough(small)
        return self._own

    def outcome(self, image: Image) -> Outcome:
        self.keep = True
        try:
            if not self.inspect(image):
                raise RuntimeError("the picture was given no prompts")
        finally:
            self.keep = False
        assert self._own is not None
        assert self._segmented is not None
        masks, scores = (array.numpy() for array in self._segmented)
        self._segmented = None
        height, width = image.shape[:2]
        rough = cv2.resize(self.planted, (width, height), interpolation=cv2.INTER_LINEAR)
        final = fuse(rough, masks, scores, self.preset.fusion.mask_weight)
        prompts = find_prompts(rough, self.preset.prompts)
        _, regions = decide(final, prompts.components, self.preset.decision, refined=True)
        verdict = ANOMALOUS if regions else GOOD
        packed = np.packbits(masks.reshape(-1, height * width), axis=1)
        return Outcome(self._own[0], packed, scores, final, verdict)

    keep = False  # whether masks outlive the inspection: they are large

    def _predict(self, points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        found = super()._predict(points, boxes)
        if self.keep:
            self._segmented = found
        return found


def _clock(module: nn.Module, name: str, clock: StageClock) -> None:
    """Time every call of a module as a stage."""
    module.register_forward_pre_hook(lambda *_: clock.start(name))
    module.register_forward_hook(lambda *_: clock.stop(name))


def module_sessions(job: CpuJob) -> ClockedSessions:
    """The engine on PyTorch's modules, as they are or compiled."""
    preset, features, umci, sam = load_models(job)
    modules = graph_modules(features, umci, sam, "mask")
    if job.precision in DTYPES:
        modules = {
            name: HalfPrecision(module, job.precision, fused_attention=True)
            for name, module in modules.items()
        }
    if job.kind == "torch-compile":
        modules = {name: torch.compile(m, fullgraph=True) for name, m in modules.items()}
    specs = graph_specs(preset)
    sessions: dict[str, Session] = {
        name: TorchSession(module, "cpu", *specs[name]) for name, module in modules.items()
    }
    return ClockedSessions(module_bundle(preset, bundle_text(job, preset)), sessions)
