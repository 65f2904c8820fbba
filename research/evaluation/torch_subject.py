"""The method in PyTorch with an evaluation's interface, for `clipsam evaluate --torch`.

CLIP, UMCI and segment-anything's own predictor run on the CPU or a GPU; preprocessing, prompts and
decision are the runtime's, so a difference from a bundle is a difference of the engines.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

from clipsam.research.models.checkpoints import (
    check_pair,
    load_clip,
    load_sam,
    load_umci,
    trained_preset,
)
from clipsam.research.models.clip import ClipFeatures, normalise
from clipsam.research.models.device import torch_device
from clipsam.research.models.presets import Preset, get_tokenizer
from clipsam.research.models.prompt_ensemble import text_features
from clipsam.research.models.reference import fuse, segment, weighted_sum
from clipsam.research.models.umci import UMCIStages
from clipsam.runtime.core.errors import WeightsError
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.decision import decide
from clipsam.runtime.stages.fusion import image_scale, on_scale
from clipsam.runtime.stages.picture import obvious_reasons
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.prompts import find_prompts


@dataclass(frozen=True)
class Weights:
    """Checkpoint files; None: what `research/models/checkpoints.py` finds by itself."""

    clip: Path | None = None
    umci: Path | None = None
    sam: Path | None = None


class _AnyWord(Collection[str]):
    """Every category is known: the text tower is at hand."""

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


class TorchModel:
    """CLIP with UMCI, then SAM. `identity` says which; `prompts` are Eq. 7's options."""

    categories: Collection[str] = _AnyWord()

    def __init__(
        self, preset: Preset, clip: Any, umci: UMCIStages, sam: Sam, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.size = preset.clip_image_size
        self.identity = f"PyTorch model {preset.name} on {self.device}"
        self.prompts, self.fusion, self.decision = preset.prompts, preset.fusion, preset.decision
        self.clip = clip.to(self.device).eval()
        features = ClipFeatures(clip.visual, preset.features_list, self.size)
        self.features = features.to(self.device).eval()
        self.umci = umci.to(self.device).eval()
        self.predictor = SamPredictor(sam.to(self.device).eval())
        self.tokenizer = get_tokenizer()
        self.notes: list[str] = []  # what to say beside the figures
        self._text: dict[str, Tensor] = {}

    @classmethod
    def load(cls, preset: Preset, weights: Weights, device: str = "cpu") -> TorchModel:
        """The preset with weights from files, UMCI as its file says that it was trained.

        Raises WeightsError, and ProviderError for a device that is not there.
        """
        torch_device(device)  # before the gigabytes
        preset = trained_preset(preset, weights.umci)[0]
        umci = load_umci(preset, weights.umci)[0]
        clip, clip_sha = load_clip(preset, weights.clip)
        model = cls(preset, clip, umci, load_sam(preset, weights.sam)[0], device)
        try:
            check_pair(preset, weights.umci, clip, clip_sha)
        except WeightsError as error:
            model.notes.append(
                f"{str(error).rstrip('.')}; if the weights differ, maps mean nothing"
            )
        return model

    @torch.no_grad()
    def rough_map(self, image: Image, category: str) -> NDArray[np.float32]:
        """O_f float32 [H,W] in [0,1] of an image HxWx3 uint8 RGB."""
        if category not in self._text:
            self._text[category] = text_features(self.clip, self.tokenizer, category)[None]
        pixels = torch.from_numpy(clip_input(image, self.size)).to(self.device)
        small = self.umci.rough_map(
            self.features(normalise(pixels)), self._text[category], self.size
        )
        height, width = image.shape[:2]
        resized = cv2.resize(small[0].float().cpu().numpy(), (width, height))
        return np.asarray(resized, np.float32)

    def inspect(
        self, image: Image, category: str, refine: bool = True, norm: str = "fixed"
    ) -> Result:
        """Inspect one image, HxWx3 uint8 RGB; without `refine` stop at the rough map. `norm` of the
        map returned is "fixed" or "image"."""
        rough = self.rough_map(image, category)
        prompts = find_prompts(rough, self.prompts)
        masks, scores = np.zeros((0, 3, *rough.shape), np.bool_), np.zeros((0, 3), np.float32)
        if refine:
            masks, scores = segment(self.predictor, image, prompts)  # of no prompt, no masks
        refined = len(masks) > 0
        weight = self.fusion.mask_weight
        final = fuse(rough, masks, scores, weight)
        decision = decide(
            final, prompts, self.decision, refined=refined, reasons=obvious_reasons(image)
        )
        total = np.asarray(weighted_sum(rough, masks, scores, weight), np.float32)
        shown = final if norm == "fixed" else image_scale(total)
        return Result(
            verdict=decision.verdict,
            score=decision.score,
            limit=decision.limit,
            reasons=decision.reasons,
            regions=decision.regions,
            category=category,
            height=image.shape[0],
            width=image.shape[1],
            prompts=len(prompts),
            dropped=prompts.dropped,
            refined=refined,
            norm=norm,
            bundle="",
            timings={},
            score_map=shown,
            map_limit=on_scale(decision.limit, total, norm, 3, weight),
            mask=decision.mask,
        )
