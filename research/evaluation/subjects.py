"""What is evaluated: a bundle on any backend, or PyTorch, behind one interface."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipsam.research.evaluation.opening import add_bundle_flags, open_bundle, runs_on
from clipsam.runtime.commands.sensitivity import add_options, read_options
from clipsam.runtime.core.errors import ClipSAMError
from clipsam.runtime.core.result import Result
from clipsam.runtime.images.image import Image
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.prompts import PromptOptions

# Flags that only a bundle has.
OF_BUNDLES = (
    "provider", "precision", "threads", "calibration", "limit", "min_area", "mm_per_pixel", "roi",
    "ignore", "tiles", "zoom",
)  # fmt: skip
OF_TORCH = ("clip_weights", "umci_weights", "sam_weights", "device")


class Model(Protocol):
    """A bundle (`BundleModel`) or PyTorch (`torch_subject.TorchModel`)."""

    identity: str
    categories: Collection[str]
    prompts: PromptOptions
    size: int  # side of CLIP's input
    notes: list[str]  # what to say beside its figures

    def inspect(
        self, image: Image, category: str, refine: bool = True, norm: str = "fixed"
    ) -> Result: ...

    def rough_map(self, image: Image, category: str) -> NDArray[np.float32]: ...


class BundleModel:
    """An opened bundle."""

    def __init__(self, model: ClipSAM) -> None:
        self.model = model
        manifest = model.bundle.manifest
        self.identity = f"bundle {model.bundle.id} on {runs_on(model)}"
        if model.calibration:
            self.identity += f" with calibration {model.calibration.id}"
        known = model.calibration.category if model.calibration else None
        self.category = known  # the only one that its limit holds for
        self.categories: Collection[str] = frozenset(manifest.categories)
        self.prompts = manifest.prompts
        self.size = manifest.clip_image_size
        self.notes: list[str] = []

    def inspect(
        self, image: Image, category: str, refine: bool = True, norm: str = "fixed"
    ) -> Result:
        """Inspect one image; without `refine` stop at the rough map. `norm`: "fixed", "image"."""
        category = self.category or category
        return self.model.inspect(image, category, norm=norm, deadline_ms=None if refine else 0.0)

    def rough_map(self, image: Image, category: str) -> NDArray[np.float32]:
        """O_f: an inspection without time for SAM returns it, divided by Eq. 9's fixed scale."""
        unrefined = self.inspect(image, category, refine=False).score_map
        weight = self.model.bundle.manifest.fusion.mask_weight
        return np.asarray(unrefined * np.float32(1 + weight * self.model.masks_per_box), np.float32)


def known_word(model: Model, category: str) -> str:
    """The category, or the generic word where the model has no text for it (appendix A)."""
    return category if category in model.categories else "object"


@contextmanager
def open_model(args: argparse.Namespace) -> Iterator[Model]:
    """The model that `clipsam evaluate`'s arguments name. Raises ClipSAMError."""
    if args.torch:
        from clipsam.research.evaluation.torch_subject import TorchModel, Weights
        from clipsam.research.models.device import best_device
        from clipsam.research.models.presets import PRESETS

        if args.bundle not in PRESETS:
            raise ClipSAMError(
                f"With --torch the first argument is a preset ({', '.join(PRESETS)}), not "
                f"{args.bundle}."
            )
        weights = Weights(args.clip_weights, args.umci_weights, args.sam_weights)
        yield TorchModel.load(PRESETS[args.bundle], weights, args.device or best_device())
        return
    with open_bundle(
        args.bundle,
        args.provider,
        args.threads,
        args.precision,
        options=read_options(args),
        calibration=args.calibration,
    ) as model:
        yield BundleModel(model)


def check_flags(args: argparse.Namespace) -> None:
    """Raise ClipSAMError for a flag that would be ignored by the kind of model asked for."""
    wrong, kind = (OF_BUNDLES, "a bundle") if args.torch else (OF_TORCH, "--torch")
    for name in wrong:
        if getattr(args, name) is not None:
            instead = "--device says where PyTorch runs" if args.torch else "a bundle has its own"
            flag = name.replace("_", "-") if name not in OF_TORCH else name
            raise ClipSAMError(f"--{flag} is for {kind}: leave it out, {instead}.")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of both kinds of model."""
    bundle = parser.add_argument_group("a bundle")
    add_bundle_flags(bundle)
    bundle.add_argument("--calibration", type=Path, help="a file of `clipsam calibrate`")
    add_options(parser)
    torch = parser.add_argument_group("a PyTorch model instead of a bundle")
    torch.add_argument("--torch", action="store_true")
    torch.add_argument("--clip_weights", type=Path)
    torch.add_argument("--umci_weights", "--checkpoint_path", type=Path)
    torch.add_argument("--sam_weights", type=Path)
    torch.add_argument("--device", help="default: cuda where PyTorch has it, else cpu")
