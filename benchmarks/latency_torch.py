"""The PyTorch rows of `bench_latency.py`, and what shares are taken of: FLOPs and matrix peaks.

- "torch-eager" is what a user would write: open_clip's tower and UMCI, then segment-anything's
  `SamPredictor`, whose embedding stays on the device and whose masks come at image size. PyTorch's
  own defaults hold, so that on a GPU cuDNN may round convolutions to TF32.
- "torch-compile" is the engine's host code with the graphs' modules in bf16, their attention in
  `scaled_dot_product_attention`, each compiled as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import latency_row
import numpy as np
import torch
from latency_row import PROMPTS, Job, SessionSubject, planted_map, prompt_arrays
from segment_anything import SamPredictor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clipsam.export.graphs.checkpoints import Checkpoints
from clipsam.export.graphs.clip_umci import ClipUmciGraph
from clipsam.export.graphs.sam_decoder import SamDecoderGraph
from clipsam.export.graphs.sam_encoder import SamEncoderGraph
from clipsam.export.quantization.half import HalfPrecision
from clipsam.research.models.clip import ClipFeatures, normalise
from clipsam.research.models.presets import PRESETS, Preset, build_clip, build_sam
from clipsam.research.models.umci import UMCIStages
from clipsam.runtime.backends.base import Array, Session, TensorSpec
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.prompts import FOREGROUND, find_prompts

PEAK_ROUNDS, PEAK_SECONDS = 20, 5.0  # whichever ends first, with two rounds at least
PEAK_SIDES = {"cuda": 8192, "cpu": 2048}
_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}


def run(job: Job) -> dict[str, Any]:
    """Do a job of PyTorch's; see `latency_row.run`."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if job.kind == "flops":
        return {"flops": count_flops(PRESETS[job.preset])}
    if job.device == "cuda":
        latency_row.need_cuda(torch.cuda.is_available())
    if job.kind == "peak":
        return {"peaks": matrix_peaks(job.device, job.matmul or PEAK_SIDES[job.device])}
    load = {"torch-eager": EagerSubject, "torch-compile": compiled_subject}[job.kind]
    with torch.inference_mode():
        report = latency_row.measure(job, load)
    if job.device == "cuda":
        report["torch_cuda_bytes"] = torch.cuda.max_memory_allocated()
    return report


def load_models(job: Job) -> tuple[Preset, ClipFeatures, UMCIStages, Any]:
    """The preset's models with their weights, in fp32 on the device."""
    preset = PRESETS[job.preset]
    paths = {name: Path(file) for name, file in job.weights.items()}
    checkpoints = Checkpoints(**paths, random_seed=job.random_weights)
    clip, umci, sam = (
        load(preset)[0].to(job.device)
        for load in (checkpoints.load_clip, checkpoints.load_umci, checkpoints.load_sam)
    )
    features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
    return preset, features.to(job.device).eval(), umci.eval(), sam


def random_text(preset: Preset) -> Array:
    """L float32 [C_t,2] of no category."""
    text = np.random.default_rng(0).standard_normal((preset.umci.text_dim, 2)).astype(np.float32)
    return text / np.linalg.norm(text, axis=0)


class EagerSubject:
    """The method as plain PyTorch, one call after another."""

    def __init__(self, job: Job) -> None:
        self.device = job.device
        self.preset, self.features, self.umci, sam = load_models(job)
        self.predictor = SamPredictor(sam)
        self.text = torch.from_numpy(random_text(self.preset))[None].to(job.device)
        self.plant(0)

    def plant(self, boxes: int) -> None:
        self.planted = planted_map(self.preset.clip_image_size, boxes)

    def inspect(self, image: Array) -> int:
        height, width = image.shape[:2]
        self._rough(clip_input(image, self.preset.clip_image_size))
        rough = cv2.resize(self.planted, (width, height), interpolation=cv2.INTER_LINEAR)
        prompts = find_prompts(rough, self.preset.prompts)
        total = torch.from_numpy(rough).to(self.device)
        if len(prompts):
            self.predictor.set_image(image)
            transform = self.predictor.transform
            points = transform.apply_coords_torch(torch.from_numpy(prompts.points), (height, width))
            boxes = transform.apply_boxes_torch(torch.from_numpy(prompts.boxes), (height, width))
            masks, scores = self._predict(points, boxes)
            total = total + (masks * scores[..., None, None]).sum(dim=(0, 1))
        (total / 4).clip(0, 1).cpu().numpy()
        return len(prompts)

    def stages(self, image: Array) -> dict[str, Callable[[], object]]:
        size, sam_size = self.preset.clip_image_size, self.preset.sam.image_size
        small = clip_input(image, size)
        framed = cv2.resize(image, (sam_size, sam_size))

        def encode() -> None:
            self.predictor.set_image(framed)
            synchronise(self.device)

        encode()  # which the decoder's calls need
        calls: dict[str, Callable[[], object]] = {
            "clip_umci": lambda: self._rough(small),
            "sam_encoder": encode,
        }
        for prompts in PROMPTS:
            coords, _ = prompt_arrays(prompts, self.preset.prompts.num_points, sam_size)
            points, boxes = torch.from_numpy(coords[:, :-2]), torch.from_numpy(coords[:, -2:])
            calls[f"sam_decoder {prompts}"] = lambda points=points, boxes=boxes: [
                output.cpu() for output in self._predict(points, boxes.flatten(1))
            ]
        return calls

    def _rough(self, small: Array) -> Array:
        taps = self.features(normalise(torch.from_numpy(small).to(self.device)))
        return self.umci.rough_map(taps, self.text, self.preset.clip_image_size).cpu().numpy()

    def _predict(self, points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.full(points.shape[:2], FOREGROUND, device=self.device)
        masks, scores, _ = self.predictor.predict_torch(
            points.to(self.device), labels, boxes.to(self.device), multimask_output=True
        )
        return masks, scores


class TorchSession(Session):
    """A graph's module behind the interface of an engine: arrays of the host in and out."""

    def __init__(
        self, module: nn.Module, device: str, inputs: list[TensorSpec], outputs: list[TensorSpec]
    ) -> None:
        self.module, self.device = module, device
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self.provider, self.precision = device, "bf16"

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = self.module(
            *(torch.from_numpy(feeds[name]).to(self.device) for name in self.inputs)
        )
        outputs = found if isinstance(found, tuple) else (found,)
        return {k: v.cpu().numpy() for k, v in zip(self.outputs, outputs, strict=True)}


def compiled_subject(job: Job) -> SessionSubject:
    """The engine on compiled bf16 modules."""
    preset, features, umci, sam = load_models(job)
    graphs = graph_modules(features, umci, sam, "mask")
    specs = {name: graph_specs(preset)[name] for name in graphs}
    sessions = {
        name: TorchSession(
            torch.compile(HalfPrecision(module, "bf16", fused_attention=True), fullgraph=True),
            job.device,
            *specs[name],
        )
        for name, module in graphs.items()
    }
    return SessionSubject(module_bundle(preset, random_text(preset)), sessions)


def module_bundle(preset: Preset, text: Array) -> SimpleNamespace:
    """What `ClipSAM` asks of a bundle, with L float32 [C_t,2] of its one category."""
    manifest = SimpleNamespace(
        prompts=preset.prompts,
        fusion=preset.fusion,
        decision=preset.decision,
        categories=("object",),
    )
    return SimpleNamespace(manifest=manifest, text=lambda category: text, id="")


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
    size, side, dim = preset.clip_image_size, preset.sam.image_size, preset.sam.prompt_dim
    grid, spec = side // 16, TensorSpec
    embedding = spec("embedding", "float32", (1, dim, grid, grid))
    return {
        "clip_umci": (
            [
                spec("image", "uint8", ("batch", size, size, 3)),
                spec("text", "float32", ("batch", preset.umci.text_dim, 2)),
            ],
            [spec("rough", "float32", ("batch", size, size))],
        ),
        "sam_encoder": (
            [spec("image", "uint8", (1, side, side, 3)), spec("valid_size", "int64", (2,))],
            [embedding],
        ),
        "sam_decoder": (
            [
                embedding,
                spec("point_coords", "float32", ("prompts", "points", 2)),
                spec("point_labels", "float32", ("prompts", "points")),
            ],
            [
                spec("logits", "float32", ("prompts", 3, 4 * grid, 4 * grid)),
                spec("scores", "float32", ("prompts", 3)),
            ],
        ),
    }


def count_flops(preset: Preset) -> dict[str, int]:
    """Floating-point operations of every stage (a multiply and an add are two), by its name.

    Counted on tensors without data, so that the paper's models need no memory.
    """
    with torch.device("meta"), torch.no_grad():
        clip, umci = build_clip(preset.clip_name).eval(), UMCIStages(preset.umci).eval()
        features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
        sam = build_sam(preset.sam).to("meta")  # segment-anything's mean and std are not yet
        graphs = graph_modules(features, umci, sam, "stock")
        points = preset.prompts.num_points + 2
        sizes = {"clip_umci": {"batch": 1}, "sam_encoder": {}}
        sizes |= {f"sam_decoder {n}": {"prompts": n, "points": points} for n in PROMPTS}
        flops = {}
        for stage, axes in sizes.items():
            name = stage.split(" ", maxsplit=1)[0]
            inputs = [
                torch.empty([axes.get(n, n) for n in s.shape], dtype=getattr(torch, s.dtype))
                for s in graph_specs(preset)[name][0]
            ]
            with FlopCounterMode(display=False) as counter:
                graphs[name](*inputs)
            flops[stage] = int(counter.get_total_flops())
    return flops


def matrix_peaks(device: str, side: int) -> dict[str, float | str]:
    """Operations a second of a large product of square matrices by precision, the best of some
    rounds; or why there is none."""
    peaks: dict[str, float | str] = {}
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32 here, as in every engine
    for name, dtype in _DTYPES.items():
        try:
            a = torch.ones((side, side), dtype=dtype, device=device)
            multiply = torch._int_mm if name == "int8" else torch.mm
            best = min(
                _seconds(lambda m=multiply, a=a: m(a, a), device) for _ in range(PEAK_ROUNDS)
            )
            peaks[name] = 2 * side**3 / best
        except (RuntimeError, NotImplementedError) as error:  # no such product on this device
            peaks[name] = f"not run: {str(error).splitlines()[0]}"
    return peaks


def _seconds(call: Callable[[], object], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    """Wait for the GPU, if it is one."""
    if device == "cuda":
        torch.cuda.synchronize()
