"""Train UMCI on a frozen CLIP (Sec. 3.4): focal and dice loss, AdamW, nothing else moves.

    python -m clipsam.research.train --preset tiny --dataset synthetic --save_path runs/tiny
    python -m clipsam.research.train --preset paper --data_path visa_in_mvtec_layout \
        --clip_weights ViT-L-14-336px.pt --save_path runs/visa

As its peers do, it trains on the test split of one data set (the only one with masks); evaluate
on another. The run resumes after an interruption and ends with `umci.safetensors`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipsam.research.clip_features import ClipFeatures, normalise
from clipsam.research.datasets import LabelledImage, find_dataset
from clipsam.research.loop import LoopConfig, run
from clipsam.research.losses import total_loss
from clipsam.research.metrics import pixel_metrics
from clipsam.research.presets import PRESETS, Preset, get_tokenizer
from clipsam.research.steering import PLAIN, SWAPPED, draw_wording
from clipsam.research.synthetic import sample_from_seed
from clipsam.research.text_prompts import state_feature, text_features
from clipsam.research.umci import UMCIStages, mean_abnormal
from clipsam.research.weights import load_clip, save_weights
from clipsam.runtime.errors import ClipSAMError, DatasetError
from clipsam.runtime.preprocess import clip_input

VALIDATION_SEED = 2**40
# image uint8 [S,S,3], mask [S,S], category, wording (see `steering`)
Item = tuple[Tensor, Tensor, str, str]


class SyntheticImages(Dataset[Item]):
    """Item i is the procedural sample `seed + i`; never repeats."""

    def __init__(self, size: int, seed: int, length: int, steering: float = 0.0) -> None:
        self.size, self.seed, self.length, self.steering = size, seed, length, steering

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        sample = sample_from_seed(self.seed + index, self.size)
        mask = torch.from_numpy(sample.mask.astype(np.float32))
        wording = draw_wording(np.random.default_rng([self.seed, index, 2]), self.steering)
        return torch.from_numpy(sample.image), mask, sample.category, wording


class LabelledImages(Dataset[Item]):
    """A folder's images over and over, shuffled anew each epoch by the seed alone."""

    def __init__(self, images: Sequence[LabelledImage], size: int, seed: int, epochs: int) -> None:
        self.images, self.size, self.seed, self.epochs = images, size, seed, epochs

    def __len__(self) -> int:
        return len(self.images) * self.epochs

    def __getitem__(self, index: int) -> Item:
        epoch, place = divmod(index, len(self.images))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        item = self.images[int(order[place])]
        image, mask = item.load()
        small = cv2.resize(
            mask.astype(np.float32), (self.size, self.size), interpolation=cv2.INTER_AREA
        )
        # The runtime's own preprocessing: a model must see on the box what it was trained on.
        pixels = torch.from_numpy(clip_input(image, self.size)[0])
        return pixels, torch.from_numpy((small > 0.5).astype(np.float32)), item.category, PLAIN


Batch = tuple[Tensor, Tensor, list[str], list[str]]


def collate(items: list[Item]) -> Batch:
    """A batch: images [B,S,S,3], masks [B,S,S], categories, wordings."""
    images, masks, categories, wordings = zip(*items, strict=True)
    return torch.stack(images), torch.stack(masks), list(categories), list(wordings)


class UmciTask:
    """Eq. 12 on the stages' logits; validation by pixel AP on held-out procedural images."""

    def __init__(
        self,
        preset: Preset,
        clip: Any,
        device: torch.device,
        validation: int = 96,
        bf16: bool = False,
    ) -> None:
        self.bf16 = bf16
        self.size, self.device = preset.clip_image_size, device
        self.clip = clip.to(device).requires_grad_(False)
        self.features = ClipFeatures(clip.visual, preset.features_list, self.size).to(device)
        self.module = UMCIStages(preset.umci).to(device)
        self.tokenizer = get_tokenizer()
        self._text: dict[tuple[str, str], Tensor] = {}
        held_out = SyntheticImages(self.size, VALIDATION_SEED, validation)
        self._validation = [held_out[i] for i in range(validation)]

    def text(self, categories: Sequence[str], wordings: Sequence[str]) -> Tensor:
        """L [B,C_t,2] of a batch's categories and wordings, computed once each."""
        return torch.stack([self._words(*pair) for pair in zip(categories, wordings, strict=True)])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        images, masks, categories, wordings = batch
        target = torch.stack([_target(m, w) for m, w in zip(masks, wordings, strict=True)])
        logits = self._logits(images, self.text(categories, wordings))
        return total_loss(logits, target.to(self.device)), {}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        maps, truth = [], []
        for image, mask, category, _ in self._validation:
            rough = mean_abnormal(self._logits(image[None], self.text([category], [PLAIN])))
            maps.append(rough[0].cpu().numpy())
            truth.append(mask.numpy() > 0.5)
        metrics = pixel_metrics(np.stack(maps), np.stack(truth))
        return {"score": metrics["ap"], "auroc": metrics["auroc"], "f1": metrics["f1_max"]}

    def _logits(self, images: Tensor, text: Tensor) -> list[Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                taps = self.features(normalise(images.to(self.device)))
            stages: list[Tensor] = self.module(taps, text, self.size)
        return [logits.float() for logits in stages]

    def _words(self, category: str, wording: str) -> Tensor:
        known = self._text.get((category, wording))
        if known is None:
            known = text_features(self.clip, self.tokenizer, category)
            if wording == SWAPPED:
                known = known.flip(1)
            elif wording != PLAIN:
                states = [wording + " {}"]
                other = state_feature(self.clip, self.tokenizer, category, states)
                known = torch.stack([known[:, 0], other], dim=1)
            self._text[category, wording] = known
        return known


def _target(mask: Tensor, wording: str) -> Tensor:
    """What the "abnormal" column means under this wording (see `steering`)."""
    if wording == SWAPPED:
        return 1 - mask
    return mask if wording == PLAIN else torch.zeros_like(mask)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.dataset == "mvtec" and args.data_path is None:
        parser.error("--dataset mvtec needs --data_path, a folder in MVTec AD's layout")
    try:
        train(args)
    except ClipSAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def train(args: argparse.Namespace) -> None:
    """Train as the arguments say and write `umci.safetensors` into the save path."""
    torch.manual_seed(args.seed)
    preset = PRESETS[args.preset]
    if args.image_size:
        preset = replace(preset, clip_image_size=args.image_size)
    if args.features_list:
        preset = replace(preset, features_list=tuple(args.features_list))
    overrides = {
        "hidden_dim": args.hidden_dim,
        "pool_sizes": tuple(args.pool_sizes) if args.pool_sizes else None,
        "paths": tuple(args.paths) if args.paths else None,
    }
    umci = replace(preset.umci, **{k: v for k, v in overrides.items() if v is not None})
    preset = replace(preset, umci=replace(umci, stages=len(preset.features_list)))
    clip, clip_sha = load_clip(preset, args.clip_weights)
    task = UmciTask(preset, clip, torch.device(args.device), args.validation_images, args.bf16)
    dataset: SyntheticImages | LabelledImages
    if args.dataset == "synthetic":
        steps = args.steps
        dataset = SyntheticImages(task.size, args.seed, steps * args.batch_size, args.steering)
    else:
        images = find_dataset(args.data_path)
        dataset = LabelledImages(images, task.size, args.seed, args.epoch)
        steps = len(dataset) // args.batch_size
        if not steps:
            raise DatasetError(
                f"{args.data_path} gives {len(dataset)} images in {args.epoch} epochs, fewer than "
                f"one batch of {args.batch_size}: lower --batch_size or raise --epoch."
            )
    config = LoopConfig(
        steps=steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        save_path=args.save_path / "umci",
        workers=args.workers,
        validate_every=args.validate_every,
    )
    print(f"umci: {run(task, dataset, config, collate)}")
    metadata = {"umci": preset.umci.to_json(), "clip_sha256": clip_sha}
    save_weights(task.module.state_dict(), args.save_path / "umci.safetensors", "umci", metadata)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train UMCI on a frozen CLIP.")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper")
    parser.add_argument("--dataset", choices=("mvtec", "synthetic"), default="mvtec")
    parser.add_argument("--data_path", type=Path, help="folder in MVTec AD's layout")
    parser.add_argument("--save_path", type=Path, required=True)
    parser.add_argument("--clip_weights", type=Path)
    parser.add_argument("--features_list", type=int, nargs="+", help="blocks tapped, from 1")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--epoch", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1000, help="of --dataset synthetic")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--hidden_dim", type=int, help="c_h (table 3)")
    parser.add_argument("--pool_sizes", type=int, nargs="+", help="s of the scale path (table 3)")
    parser.add_argument("--paths", nargs="+", choices=("strip", "scale"), help="table 2")
    parser.add_argument("--validate_every", type=int, default=200)
    parser.add_argument("--validation_images", type=int, default=96, help="procedural ones")
    parser.add_argument(
        "--steering", type=float, default=0.0, help="share of procedural images with odd words"
    )
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
