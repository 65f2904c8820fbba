"""Train the miniature CLIP and the miniature SAM of the `tiny` preset from scratch.

    python -m clipsam.research.pretrain_tiny clip --save_path runs/tiny
    python -m clipsam.research.pretrain_tiny sam  --save_path runs/tiny   # beside its clip
    python -m clipsam.research.train --preset tiny --dataset synthetic --save_path runs/tiny

`research/synthetic` makes everything they see. The same commands run on a CPU and on a GPU, resume
after an interruption, and end with `clip.safetensors` and `sam.safetensors` in the save path.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from clipsam.research.cli.run import run_command
from clipsam.research.models.checkpoints import load_clip, read_state, save_weights
from clipsam.research.models.device import best_device, torch_device
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.models.tiny import own_tensors
from clipsam.research.training import clip_task as pretrain_clip
from clipsam.research.training import sam_task as pretrain_sam
from clipsam.research.training.loop import LoopConfig, run
from clipsam.runtime.commands.parser import command_parser, number, whole_number


def pretrain_clip_stage(preset: Preset, args: argparse.Namespace, device: torch.device) -> None:
    """The patch embedding alone, then the transformer and the text, then both on whole pictures."""
    embedding = pretrain_clip.EmbeddingTask(preset, device, args.validation_images)
    tower = pretrain_clip.ClipTask(preset, device, args.validation_images)
    clip = tower.clip
    if args.initial_weights is not None:  # another round
        clip.load_state_dict(load_clip(preset, args.initial_weights)[0].state_dict())
        embedding.embedding.load_state_dict(clip.visual.conv1.state_dict())
    for name, task, steps in (
        ("embedding", embedding, args.steps_embedding),
        ("tower", tower, args.steps),
        ("whole", tower, args.steps_full),
    ):
        if not steps:
            continue
        tower.windows = 1 if name == "whole" else 2
        rate = args.learning_rate / (5 if name == "whole" else 1)
        config = LoopConfig(
            steps, args.batch_size, rate, args.save_path / f"clip-{name}",
            workers=args.workers, validate_every=args.validate_every, beta2=0.98, average=0.995,
        )  # fmt: skip
        first = _first_picture(args.seed) + 2**33 * ("embedding", "tower", "whole").index(name)
        count = steps * args.batch_size
        dataset = pretrain_clip.CaptionedImages(preset, first, count, args.fine, args.even)
        print(f"clip, {name}: {run(task, dataset, config)}")
        if name == "embedding":
            clip.visual.conv1.load_state_dict(embedding.embedding.state_dict())
    save_weights(clip.state_dict(), args.save_path / "clip.safetensors", "clip")


def pretrain_sam_stage(preset: Preset, args: argparse.Namespace, device: torch.device) -> None:
    """SAM around the embedding of the CLIP that the save path holds."""
    clip, _ = load_clip(preset, args.save_path / "clip.safetensors")
    task = pretrain_sam.SamTask(preset, clip, device, args.validation_images)
    if args.initial_weights is not None:  # another round
        task.start_from(read_state(args.initial_weights, "--initial_weights takes the tiny SAM"))
    config = LoopConfig(
        args.steps, args.batch_size, args.learning_rate, args.save_path / "sam",
        workers=args.workers, validate_every=args.validate_every, beta2=0.98, average=0.995,
    )  # fmt: skip
    dataset = pretrain_sam.PromptedMasks(
        preset.sam.image_size, _first_picture(args.seed), args.steps * args.batch_size, args.fine
    )
    print(f"sam: {run(task, dataset, config)}")
    tensors, metadata = own_tensors(task.sam.state_dict())
    save_weights(tensors, args.save_path / "sam.safetensors", "sam", metadata)


_STAGES = {
    "clip": pretrain_clip_stage,
    "sam": pretrain_sam_stage,
}


def _first_picture(seed: int) -> int:
    """Never one of those held out: they follow powers of two from 2**40 on (`VALIDATION_SEED`)."""
    return seed * 2**36 + 2**35


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args), "the same command goes on from the last checkpoint")


def _run(args: argparse.Namespace) -> int:
    device = torch_device(args.device)
    torch.manual_seed(args.seed)
    _STAGES[args.model](PRESETS["tiny"], args, device)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam pretrain-tiny", __doc__)
    parser.add_argument("model", choices=tuple(_STAGES))
    parser.add_argument("--save_path", type=Path, default=Path("runs/tiny"))
    steps = whole_number(0)
    parser.add_argument("--steps_embedding", type=steps, default=3000, help="CLIP's, alone")
    parser.add_argument("--steps", type=steps, default=600, help="CLIP's transformer; all of SAM")
    parser.add_argument("--steps_full", type=steps, default=100, help="CLIP on whole pictures")
    parser.add_argument("--batch_size", type=whole_number(), default=8)
    parser.add_argument(
        "--initial_weights", type=Path, help="a clip.safetensors (or sam.safetensors) to go on from"
    )
    parser.add_argument(
        "--fine", type=number(0, 1), default=0.0, metavar="SHARE",
        help="of the pictures that show small and thin defects, too",
    )  # fmt: skip
    parser.add_argument(
        "--even", type=number(0, 1), default=0.0, metavar="SHARE",
        help="of the pictures in which every kind of defect is as frequent as any other (CLIP's)",
    )  # fmt: skip
    parser.add_argument("--learning_rate", type=number(0), default=1e-3)
    parser.add_argument("--validate_every", type=whole_number(), default=250)
    parser.add_argument(
        "--workers", type=whole_number(0), default=1, help="processes that make images"
    )
    parser.add_argument(
        "--validation_images", type=whole_number(0), default=128, help="0: keep the last weights"
    )
    parser.add_argument("--seed", type=whole_number(0, 2**26), default=0)
    parser.add_argument("--device", default=best_device())
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
