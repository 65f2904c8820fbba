"""The models of a preset with their weights: from checkpoints, or seeded noise for checks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from open_clip.model import CLIP
from segment_anything.modeling import Sam
from torch import nn

from clipsam.research.models.checkpoints import (
    check_pair,
    load_clip,
    load_sam,
    load_umci,
    trained_preset,
)
from clipsam.research.models.presets import Preset, build_clip, build_sam
from clipsam.research.models.umci import UMCIStages

M = TypeVar("M", bound=nn.Module)


def weights_folder(bundle: Path) -> Path:
    """Where the weights of an adapted bundle are kept: beside it, since the box needs none."""
    bundle = bundle.resolve()
    return bundle.with_name(f"{bundle.name}.weights")


def built_from(provenance: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The preset and the digests of the weights (by "clip", "sam" and "umci") that a bundle says it
    was built from; empty where it does not say."""
    digests = provenance.get("checkpoints")
    known = digests if isinstance(digests, dict) else {}
    return str(provenance.get("preset", "")), {part: str(value) for part, value in known.items()}


def seed_of(digest: str) -> int | None:
    """The seed of random weights, whose digest is "random:SEED"; None for a file's."""
    kind, _, seed = digest.partition(":")
    return int(seed) if kind == "random" and seed.isdecimal() else None


@dataclass(frozen=True)
class Checkpoints:
    """Where the weights come from. Without a path: what `research/models/checkpoints.py` finds by
    itself, or, with `random_seed`, noise."""

    clip: Path | None = None
    sam: Path | None = None
    umci: Path | None = None
    random_seed: int | None = None
    naming: Path | None = None

    @classmethod
    def beside(cls, bundle: Path, clip: Path | None = None) -> Checkpoints:
        """The weights that an adapted bundle has beside it, as far as they are there; `clip`
        comes first."""
        folder = weights_folder(bundle)

        def there(name: str) -> Path | None:
            path = folder / f"{name}.safetensors"
            return path if path.is_file() else None

        naming = there("naming")
        return cls(clip or there("clip"), there("sam"), there("umci"), naming=naming)

    def load_clip(self, preset: Preset) -> tuple[CLIP, str]:
        """CLIP, and a digest of its weights: the file's sha256, or "random:SEED"."""
        if self.clip is None and self.random_seed is not None:
            return self._noise("clip", lambda: build_clip(preset.clip_name))
        return load_clip(preset, self.clip)

    def trained(self, preset: Preset) -> Preset:
        """The preset with the image size and taps that UMCI's file was trained with."""
        if self.umci is None and self.random_seed is not None:
            return preset
        return trained_preset(preset, self.umci)[0]

    def load_umci(self, preset: Preset) -> tuple[UMCIStages, str]:
        """UMCI, and the digest of its weights."""
        if self.umci is None and self.random_seed is not None:
            return self._noise("umci", lambda: UMCIStages(preset.umci))
        return load_umci(preset, self.umci)

    def check_pair(self, preset: Preset, clip: CLIP, digest: str) -> None:
        """Raise WeightsError where UMCI was trained on another CLIP; noise goes with anything."""
        if seed_of(digest) is None and (self.umci or self.random_seed is None):
            check_pair(preset, self.umci, clip, digest)

    def load_sam(self, preset: Preset) -> tuple[Sam, str]:
        """SAM, and the digest of its weights."""
        if self.sam is None and self.random_seed is not None:
            return self._noise("sam", lambda: build_sam(preset.sam))
        return load_sam(preset, self.sam)

    def _noise(self, name: str, build: Callable[[], M]) -> tuple[M, str]:
        """Random weights that leave nothing constant.

        Fresh modules have zeros (SAM's relative positions) and ones, behind which a missing or
        misplaced term would not show in a check.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(zlib.crc32(f"{name}:{self.random_seed}".encode()))
            model = build().eval()
            for parameter in model.parameters():
                if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return model, f"random:{self.random_seed}"
