"""From the command line of `train` to what is trained: preset, images, items, settings."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch.utils.data import Dataset

from clipsam.research.data.datasets import (
    LabelledImage,
    check_gaps,
    check_paired,
    open_dataset,
    synthetic_dataset,
)
from clipsam.research.data.feature_cache import CacheSpec, cached_features
from clipsam.research.data.items import (
    Epochs,
    Item,
    LabelledImages,
    Reworded,
    SyntheticImages,
    epoch_ends,
)
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.training.umci_task import UmciTask
from clipsam.runtime.core.errors import DatasetError

# Which layouts a set comes in: its own, or converted into MVTec AD's.
DATASETS = {
    "mvtec": ("mvtec",),
    "visa": ("visa", "mvtec"),
    "mtd": ("mtd", "mvtec"),
    "ksdd2": ("ksdd2", "mvtec"),
    "folder": (),  # whatever is found
}


@dataclass(frozen=True)
class Source:
    """What is trained on: the items, how many steps that makes, where an epoch ends."""

    items: Dataset[Item]
    steps: int
    epoch_ends: tuple[int, ...]
    images: int | None = None  # in the data set; None for procedural pictures


def configure(args: argparse.Namespace) -> Preset:
    """The preset with the command line's changes. Sizes are checked by the command line."""
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
    return replace(preset, umci=replace(umci, stages=len(preset.features_list)))


def find_images(args: argparse.Namespace, size: int) -> list[LabelledImage]:
    """The images to train on; none for procedural ones that never repeat.

    Raises DatasetError when there is nothing to learn from.
    """
    if args.dataset == "synthetic":
        return list(synthetic_dataset(args.synthetic_images, size, args.seed, args.fine))
    listing = open_dataset(args.data_path, args.category)
    layouts = DATASETS[args.dataset]
    if layouts and listing.layout not in layouts:
        raise DatasetError(
            f"{args.data_path} looks like the layout {listing.layout}, not like {args.dataset}: "
            "give the other folder, or --dataset folder to train on what is there."
        )
    if args.dataset == "folder":
        check_gaps(listing)  # a whole kind of defect without masks may be left out, one image not
    else:
        check_paired(listing)
    images = [image for image in listing.images if image.has_truth]
    if not any(not image.good for image in images):
        raise DatasetError(
            f"{args.data_path} has no defective image with a mask, and masks are what UMCI learns "
            "from: add some, or train on a public data set (docs/train.md)."
        )
    if len(images) < len(listing.images):
        left_out = len(listing.images) - len(images)
        print(f"{args.data_path}: {left_out} images without a mask are left out.")
    return images


def make_source(
    args: argparse.Namespace,
    task: UmciTask,
    images: list[LabelledImage],
    preset: Preset,
    clip_sha: str,
    digest: str,
) -> Source:
    """The items of the run; fills the feature cache if it has to."""
    batch, synthetic = args.batch_size, args.dataset == "synthetic"
    if not images:
        procedural = SyntheticImages(task.size, args.seed, args.steps * batch, args.fine)
        return Source(Reworded(procedural, args.seed, args.steering), args.steps, ())
    steps = args.steps if synthetic else len(images) * args.epoch // batch
    if not steps:
        raise DatasetError(
            f"{args.data_path} gives {len(images) * args.epoch} images in {args.epoch} epochs, "
            f"fewer than one batch of {batch}: lower --batch_size or raise --epoch."
        )
    base: Dataset[Item]
    if args.no_cache:
        base = LabelledImages(images, task.size)
    else:
        spec = CacheSpec(
            preset.clip_name, clip_sha, task.size, preset.features_list, task.feature_shape,
            len(images), digest,
        )  # fmt: skip
        root = args.cache_path or args.save_path / "features"
        base = cached_features(root, spec, images, task.extract, args.workers)
    if synthetic:
        rounds = -(-steps * batch // len(images))
        again = Reworded(Epochs(base, args.seed, rounds), args.seed, args.steering)
        return Source(again, steps, ())
    items = Epochs(base, args.seed, args.epoch, args.augment)
    return Source(items, steps, epoch_ends(len(images), args.epoch, batch), len(images))


def run_settings(
    args: argparse.Namespace, preset: Preset, clip_sha: str, digest: str
) -> dict[str, Any]:
    """What must not change when a run goes on. How long, on what and with what it runs may."""
    names = (
        "preset", "dataset", "category", "learning_rate", "batch_size", "seed", "steering",
        "focal_weight", "precision", "no_cache", "augment", "fine",
    )  # fmt: skip
    return {
        **{name: getattr(args, name) for name in names},
        "synthetic_images": args.synthetic_images or None,
        "image_size": preset.clip_image_size,
        "features_list": preset.features_list,
        "umci": asdict(preset.umci),
        "clip_sha256": clip_sha,
        "images_sha256": digest,
    }
