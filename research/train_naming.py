"""Train what names defects: a small head between CLIP's tokens and its text tower.

    clipsam train-naming --preset tiny --save_path runs/tiny
    clipsam train-naming --preset paper --dataset mvtec --data_path MVTEC --save_path runs/mvtec

CLIP and UMCI stay as they are; they look at procedural pictures once, and at the images of a data
set that says which kinds of defects it shows. That is most of the time and is kept in the save
path, so that the same command goes on after an interruption. The result is
`naming.safetensors` in the save path. Exit code: 0 done, 1 an error, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from clipsam.research.cli.run import run_command
from clipsam.research.data.datasets import LAYOUTS, open_dataset
from clipsam.research.data.defect_names import known_kinds, named_images
from clipsam.research.data.feature_cache import images_digest
from clipsam.research.data.samples import LabelledImage
from clipsam.research.models.checkpoints import load_clip, load_umci, trained_preset
from clipsam.research.models.device import best_device, torch_device
from clipsam.research.models.naming import NAMING_FILE, new_naming, save_naming
from clipsam.research.models.presets import PRESETS, get_tokenizer
from clipsam.research.training.naming_data import Looker, Picture, gather, photograph
from clipsam.research.training.naming_task import NamingOptions, Phrases, train_naming
from clipsam.runtime.commands.parser import command_parser, number, whole_number

FIRST_PICTURE = 2**45  # seeds that nothing else uses; those held out follow 2**46


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.dataset is None) != (args.data_path is None):
        parser.error("--dataset and --data_path belong together")
    if args.data_path is None and args.pictures < 64:
        parser.error("--pictures takes 64 or more where there is no --data_path")
    return run_command(lambda: _run(args), "the same command goes on from the last pictures")


def _run(args: argparse.Namespace) -> int:
    images: list[tuple[LabelledImage, str]] = []
    if args.data_path is not None:
        images = named_images(open_dataset(args.data_path, layout=args.dataset))
    kinds, place = known_kinds({name for _, name in images})
    if images:
        print(
            f"{len(images)} images show {len(place)} kinds of defects: {', '.join(sorted(place))}"
        )
    preset, _ = trained_preset(PRESETS[args.preset], args.umci_weights)
    clip, clip_digest = load_clip(preset, args.clip_weights)
    umci, umci_digest = load_umci(preset, args.umci_weights)
    bf16 = args.precision == "bf16"
    looker = Looker(preset, clip, umci, torch_device(args.device), bf16=bf16)
    first = FIRST_PICTURE + args.seed * 2**30
    folder, about = args.save_path / "naming-regions", clip_digest + umci_digest
    regions = gather(looker, folder, first, args.pictures, about, thin=True)

    def photographed(number: int) -> Picture:
        item, name = images[number]
        return photograph(item, place.get(name, 0), looker.size)

    if images:
        about += images_digest([item for item, _ in images])
        about += json.dumps([(item.category, name) for item, name in images])
        regions += gather(looker, folder, 0, len(images), about, thin=True, draw=photographed)
    phrases = Phrases(clip, get_tokenizer(), kinds)
    torch.manual_seed(args.seed)
    naming = new_naming(preset)
    options = NamingOptions(args.steps, args.batch_size, args.learning_rate, args.seed)
    figures = train_naming(naming, regions, phrases, options)
    facts = {"pictures": str(args.pictures), "steps": str(args.steps), "seed": str(args.seed)}
    if args.dataset is not None:
        facts["dataset"] = args.dataset
    seen = set(place.values())
    words = [kind.word for n, kind in enumerate(kinds) if args.pictures or n in seen]
    save_naming(naming, args.save_path / NAMING_FILE, clip, words, facts)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam train-naming", __doc__)
    add = parser.add_argument
    add("--preset", choices=tuple(PRESETS), default="tiny")
    add("--save_path", type=Path, default=Path("runs/tiny"))
    add("--clip_weights", type=Path, help="default: as for `clipsam train`")
    add("--umci_weights", type=Path, help="default: the repository's, for tiny alone")
    add("--dataset", choices=tuple(LAYOUTS), help="what --data_path looks like")
    add("--data_path", type=Path, help="images of defects whose kinds have names, with masks")
    add("--pictures", type=whole_number(0), default=32_768, help="procedural ones")
    add("--steps", type=whole_number(), default=8000)
    add("--batch_size", type=whole_number(2), default=128)
    add("--learning_rate", type=number(0), default=2e-3)
    add("--seed", type=whole_number(0, 1000), default=0)
    add(
        "--precision", choices=("fp32", "bf16"), default="fp32",
        help="of looking at pictures; bf16: mixed precision",
    )  # fmt: skip
    add("--device", default=best_device(), help="for looking at pictures; training is on the CPU")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
