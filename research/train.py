"""Train UMCI on a frozen CLIP (Sec. 3.4): focal and dice loss, AdamW, nothing else moves.

    python -m clipsam.research.train --dataset visa --data_path VisA --save_path runs/visa
    torchrun --nproc_per_node 8 -m clipsam.research.train --dataset visa --data_path VisA \
        --save_path runs/visa --precision bf16
    python -m clipsam.research.train --preset tiny --dataset synthetic --save_path runs/tiny

The defaults are the paper's: AdamW, learning rate 1e-4, batch 8, 6 epochs, stage weights 0.1, 0.1,
0.1, 0.7 (paper: no schedule and no weight decay named; here a constant rate and AdamW's own 0.01,
and the last epoch's weights; `synthetic` has a warm-up, a cosine, 0.05 and the best weights). As
its peers do, it trains on the test split of one data set (the only one with masks); evaluate on
another. The run resumes after an interruption and ends with `umci.safetensors`. docs/train.md is
the guide.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from clipsam.research.cli.run import run_command
from clipsam.research.data.augmentation import AUGMENTATIONS
from clipsam.research.data.datasets import LabelledImage
from clipsam.research.data.feature_cache import images_digest
from clipsam.research.data.file_lock import locked
from clipsam.research.data.items import Item, LabelledImages, SyntheticImages, collate
from clipsam.research.models.checkpoints import (
    CLIP_TENSORS,
    load_clip,
    save_weights,
    tensors_digest,
)
from clipsam.research.models.device import best_device
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.training.distributed import (
    Processes,
    check_agreed,
    share_of,
    start_processes,
)
from clipsam.research.training.log import LOG
from clipsam.research.training.loop import LoopConfig, run
from clipsam.research.training.overfit import defective_batch, overfit, verdict
from clipsam.research.training.run_settings import check_settings, keep_settings
from clipsam.research.training.setup import (
    DATASETS,
    configure,
    find_images,
    make_source,
    run_settings,
)
from clipsam.research.training.umci_task import UmciTask
from clipsam.runtime.commands.parser import command_parser, number, whole_number
from clipsam.runtime.core.errors import ClipSAMError, OutputError, WeightsError


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.dataset != "synthetic" and args.data_path is None:
        parser.error(f"--dataset {args.dataset} needs --data_path, the data set's folder")
    if args.dataset != "synthetic" and args.synthetic_images:
        parser.error("--synthetic_images is for --dataset synthetic")
    if args.dataset != "synthetic" and args.fine:
        parser.error("--fine is for --dataset synthetic")
    if args.augment and not args.no_cache:
        parser.error("--augment changes the images, cached features cannot follow: add --no_cache")
    if args.augment and args.dataset == "synthetic":
        parser.error("--augment is for data sets; procedural pictures are varied already")
    after = "nothing was written" if args.overfit_batch else "the same command goes on from here"
    return run_command(lambda: _in_a_group(args), after)


def _in_a_group(args: argparse.Namespace) -> int:
    processes = start_processes(args.device)
    try:
        return train(args, processes)
    finally:
        processes.close()


def train(args: argparse.Namespace, processes: Processes) -> int:
    """Train as the arguments say and write `umci.safetensors` into the save path."""
    share_of(args.batch_size, processes)  # refuse early
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        # Warns about an operation that has no deterministic form instead of failing the run.
        torch.use_deterministic_algorithms(True, warn_only=True)
    preset = configure(args)
    images = find_images(args, preset.clip_image_size)
    clip, clip_sha = load_clip(preset, args.clip_weights)
    clip_tensors = "" if processes.rank else tensors_digest(clip)  # the first process writes it
    torch.manual_seed(args.seed)  # here, so that the seed alone decides how UMCI starts
    synthetic = args.dataset == "synthetic"
    validation = args.validation_images
    if validation is None:
        validation = 96 if synthetic else 0
    if processes.rank:
        validation = 0  # the first process validates
    bf16 = args.precision == "bf16"
    try:
        task = UmciTask(
            preset, clip, processes.device, validation, bf16, args.steering > 0, args.focal_weight
        )
    except ValueError as error:  # an image size or a tap that this CLIP does not have
        raise WeightsError(f"--{str(error).replace('=', ' ', 1)}") from error
    if args.overfit_batch:
        return _overfit_batch(args, task, images, processes)

    with _alone(args.save_path / "umci", processes):
        _run(args, preset, clip_sha, clip_tensors, images, task, processes)
    return 0


def _run(
    args: argparse.Namespace,
    preset: Preset,
    clip_sha: str,
    clip_tensors: str,
    images: list[LabelledImage],
    task: UmciTask,
    processes: Processes,
) -> None:
    synthetic = args.dataset == "synthetic"
    folder = args.save_path / "umci"
    digest = images_digest(images) if images else ""
    settings = run_settings(args, preset, clip_sha, digest)
    check_settings(folder, settings)
    check_agreed(settings, processes)
    source = make_source(args, task, images, preset, clip_sha, digest)
    config = LoopConfig(
        steps=source.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        save_path=folder,
        weight_decay=0.05 if synthetic else 0.01,
        warmup=150 if synthetic else 0,
        final_fraction=0.02 if synthetic else 1.0,
        average=0.99 if synthetic else 0.0,
        workers=args.workers,
        validate_every=args.validate_every or (200 if synthetic else source.steps),
        checkpoint_at=source.epoch_ends,
        log_every=10,
    )
    if processes.rank == 0:
        keep_settings(folder, settings)
        if source.images is not None:
            print(
                f"umci: {args.epoch} epochs of {source.images} images, {source.steps} steps of "
                f"{args.batch_size} on {processes.world} x {processes.device.type}, "
                f"{args.precision}"
            )
    scores = run(task, source.items, config, collate, processes)
    if processes.rank == 0:
        if scores:
            print(f"umci: best {scores}")
        path = args.save_path / "umci.safetensors"
        metadata = {
            "umci": preset.umci.to_json(),
            "clip_sha256": clip_sha,
            CLIP_TENSORS: clip_tensors,
            "image_size": str(preset.clip_image_size),
            "features_list": json.dumps(preset.features_list),
        }
        save_weights(task.module.state_dict(), path, "umci", metadata)
        print(f"umci: wrote {path}; the figures are in {folder / LOG}")


@contextlib.contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep a second run out of the folder, such as the workers of a killed torchrun."""
    if processes.rank:
        yield
        return

    def busy() -> None:
        raise OutputError(
            f"Another process is training into {folder}: wait for it, end it, or choose another "
            "--save_path."
        )

    lock = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written to ({error}): choose another --save_path."
        ) from error
    with locked(lock, busy):
        yield


def _overfit_batch(
    args: argparse.Namespace, task: UmciTask, images: list[LabelledImage], processes: Processes
) -> int:
    if processes.world > 1:
        raise ClipSAMError("--overfit_batch is a check for one process: start without torchrun.")
    data: Dataset[Item]
    if images:
        defective = [image for image in images if not image.good][: args.batch_size]
        good = [image for image in images if image.good][: args.batch_size]
        data, count = LabelledImages([*defective, *good], task.size), len(defective) + len(good)
    else:
        count = 2 * args.batch_size
        data = SyntheticImages(task.size, args.seed, count, args.fine)
    batch = defective_batch([data[i] for i in range(count)], args.batch_size)
    steps = args.overfit_steps
    before, after = overfit(task, batch, args.learning_rate, steps)
    learned, sentence = verdict(before, after, steps)
    print(sentence if learned else f"error: {sentence}", file=None if learned else sys.stderr)
    return 0 if learned else 1


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam train", __doc__)
    add, count = parser.add_argument, whole_number()
    add("--preset", choices=tuple(PRESETS), default="paper")
    add("--dataset", choices=(*DATASETS, "synthetic"), default="mvtec")
    add("--data_path", type=Path, help="the data set's folder")
    add("--category", help="the prompts' word for every image (default: the data set's names)")
    add("--save_path", type=Path, required=True)
    add("--clip_weights", type=Path, help="default: open_clip's cache or download")
    add("--features_list", type=count, nargs="+", help="blocks tapped, from 1")
    add("--image_size", type=count)
    add("--epoch", type=count, default=6)
    add("--steps", type=count, default=1000, help="of --dataset synthetic")
    add("--synthetic_images", type=whole_number(0), default=0, metavar="N",
        help="procedural images made once, whose features are cached and seen over and over "
        "(default: 0, every image is new)")  # fmt: skip
    add("--fine", type=number(0, 1), default=0.0, metavar="SHARE",
        help="of the procedural images that show small and thin defects, too")  # fmt: skip
    add("--learning_rate", type=number(0), default=1e-4)
    add("--batch_size", type=count, default=8, help="of all processes together")
    add("--hidden_dim", type=count, help="c_h (table 3)")
    add("--pool_sizes", type=count, nargs="+", help="s of the scale path (table 3)")
    add("--paths", nargs="+", choices=("strip", "scale"), help="table 2")
    add("--validate_every", type=count, help="further checkpoints every N steps, also of synthetic")
    add("--validation_images", type=whole_number(0),
        help="procedural ones (default: 96 for synthetic, else 0)")  # fmt: skip
    add("--focal_weight", type=number(0), default=1.0, help="of Eq. 10 beside Eq. 11 (paper: 1)")
    add("--steering", type=number(0, 1), default=0.0,
        help="share of procedural images with odd words")  # fmt: skip
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: mixed precision")
    add("--bf16", dest="precision", action="store_const", const="bf16", help="--precision bf16")
    add("--no_cache", action="store_true", help="run CLIP in every epoch, keep no features")
    add("--cache_path", type=Path, help="keep CLIP's features here (default: SAVE_PATH/features)")
    add("--augment", nargs="+", choices=AUGMENTATIONS, default=[], help="needs --no_cache")
    add("--overfit_batch", action="store_true", help="only check that one batch can be learned")
    add("--overfit_steps", type=count, default=100)
    add("--workers", type=whole_number(0), default=1,
        help="processes that load data, of each process")  # fmt: skip
    add("--seed", type=whole_number(0, 2**39), default=0)  # held-out pictures start at 2**40
    add("--deterministic", action="store_true", help="deterministic operations on a GPU, slower")
    add("--device", default=best_device())
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
