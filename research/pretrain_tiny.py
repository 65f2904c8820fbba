"""Train the miniature CLIP and the miniature SAM of the `tiny` preset from scratch.

    python -m clipsam.research.pretrain_tiny clip --save_path runs/tiny
    python -m clipsam.research.pretrain_tiny sam  --save_path runs/tiny
    python -m clipsam.research.train --preset tiny --dataset synthetic --save_path runs/tiny

Everything they see is made by `synthetic.py`. The same commands run on a CPU and on a GPU, resume
after an interruption, and end with `clip.safetensors` and `sam.safetensors` in the save path.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from clipsam.research import pretrain_clip, pretrain_sam
from clipsam.research.loop import LoopConfig, run
from clipsam.research.presets import PRESETS, Preset
from clipsam.research.weights import load_clip, save_weights


def pretrain_clip_stage(preset: Preset, args: argparse.Namespace, device: torch.device) -> None:
    """The patch embedding alone, then the transformer and the text, then both on whole pictures."""
    embedding = pretrain_clip.EmbeddingTask(preset, device)
    tower = pretrain_clip.ClipTask(preset, device)
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
        seed = args.seed * 2**36 + 2**33 * ("embedding", "tower", "whole").index(name)
        dataset = pretrain_clip.CaptionedImages(preset, seed, steps * args.batch_size)
        print(f"clip, {name}: {run(task, dataset, config)}")
        if name == "embedding":
            clip.visual.conv1.load_state_dict(embedding.embedding.state_dict())
    save_weights(clip.state_dict(), args.save_path / "clip.safetensors", "clip")


def pretrain_sam_stage(preset: Preset, args: argparse.Namespace, device: torch.device) -> None:
    """Half the image size first, then the full size."""
    state = None
    full = preset.sam.image_size
    for size, steps, batch, rate in (
        (full // 2, args.steps, 8, args.learning_rate),
        (full, args.steps_full, 4, args.learning_rate / 3),
    ):
        task = pretrain_sam.SamTask(preset, device, size)
        if state is not None:
            task.module.load_state_dict(pretrain_sam.resize_state(state, task.module))
        config = LoopConfig(
            steps, batch, rate, args.save_path / f"sam-{size}", workers=args.workers,
            validate_every=args.validate_every,
        )  # fmt: skip
        dataset = pretrain_sam.make_dataset(preset, size, args.seed, steps * batch)
        print(f"sam, {size} px: {run(task, dataset, config)}")
        state = task.module.state_dict()
    save_weights(task.module.state_dict(), args.save_path / "sam.safetensors", "sam")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=("clip", "sam"))
    parser.add_argument("--save_path", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps_embedding", type=int, default=3000, help="CLIP's embedding alone")
    parser.add_argument(
        "--steps", type=int, default=600, help="CLIP's transformer; SAM at half size"
    )
    parser.add_argument(
        "--steps_full", type=int, default=100, help="CLIP on whole pictures; SAM at full size"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="of CLIP")
    parser.add_argument("--initial_weights", type=Path, help="a clip.safetensors to go on from")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--validate_every", type=int, default=250)
    parser.add_argument("--workers", type=int, default=1, help="processes that make images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    preset = PRESETS["tiny"]
    stage = pretrain_clip_stage if args.model == "clip" else pretrain_sam_stage
    stage(preset, args, torch.device(args.device))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
