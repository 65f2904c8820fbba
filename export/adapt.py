"""Adapt a model to one product: good parts in, a bundle that knows them out.

    clipsam adapt bundles/tiny --good parts/good --category cookie --output bundles/cookie
    clipsam adapt paper --clip-weights ViT-L-14-336px.pt --sam-weights sam_vit_h_4b8939.pth \\
        --umci-weights runs/visa/umci.safetensors --good parts/good --output bundles/mine

UMCI (and the embedding of `tiny`'s CLIP) is fine-tuned on the good parts with planted defects, and
on procedural pictures so that nothing is forgotten. A quarter of the parts is held out. The bundle
is written, past the same gate as every other, only if defects planted on held-out parts are found
better than before; it is no longer zero-shot, and its manifest says so. An interrupted run goes on
when the same command is given again. Exit code: 0 written, 1 an error, 3 no better, so nothing was
written, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from segment_anything.modeling import Sam

from clipsam.export.bundle.build import BuildOptions, build
from clipsam.export.bundle.staging import check_replaceable
from clipsam.export.graphs.checkpoints import Checkpoints, built_from, seed_of, weights_folder
from clipsam.export.graphs.sam_attention import usual_attention
from clipsam.export.words import PRODUCT
from clipsam.research.cli.run import run_command
from clipsam.research.data.file_lock import locked
from clipsam.research.models.checkpoints import save_weights
from clipsam.research.models.device import torch_device
from clipsam.research.models.presets import PRESETS, Preset
from clipsam.research.training.adaptation import LEAST_GAIN, Adapted, AdaptOptions, adapt, finish
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.commands.parser import command_parser, number, whole_number
from clipsam.runtime.commands.sensitivity import add_view, read_view
from clipsam.runtime.core.errors import BundleError, OutputError, WeightsError
from clipsam.runtime.core.files import sha256, write_bytes
from clipsam.runtime.options import clean_words

NO_BETTER = 3
_ROWS = {
    "planted": "defects planted on parts never used",
    "true": "true defects",
    "procedural": "procedural pictures (what it knew)",
}
_COLUMNS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP"}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args), "the same command goes on from the last checkpoint")


def _run(args: argparse.Namespace) -> int:
    output = args.output.resolve()
    check_replaceable(output)
    if Path(args.model).resolve() == output:
        raise OutputError(f"{output} is the bundle to adapt: give the new one another --output.")
    device, view = torch_device(args.device), read_view(args)
    (category,) = clean_words([args.category], PRODUCT)
    origin = find_origin(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    preset = origin.checkpoints.trained(origin.preset)
    clip, clip_digest = origin.checkpoints.load_clip(preset)
    umci, umci_digest = origin.checkpoints.load_umci(preset)
    sam, sam_digest = origin.checkpoints.load_sam(preset)  # refused now, not after the training
    digests = {"clip": clip_digest, "umci": umci_digest, "sam": sam_digest}
    origin.check(digests)
    preset = replace(preset, umci=umci.config)
    work = output.with_name(f"{output.name}.adapting")
    options = AdaptOptions(
        good=args.good,
        category=category,
        work=work,
        defective=args.defective,
        minutes=args.minutes,
        steps=args.steps,
        seed=args.seed,
        learning_rate=args.learning_rate,
        embedding=preset.clip_name == "tiny" and not args.frozen_clip,
        view=view,
    )
    with _alone(work):
        adapted = adapt(options, preset, clip, umci, digests, device)
        print(f"\nAfter {adapted.facts['steps']} steps:\n{table(adapted)}")
        if not adapted.better:
            print(f"\n{_why_not(adapted)} No bundle was written.")
            finish(work)
            return NO_BETTER
        weights = _save(adapted, work, preset, clip, sam, clip_digest)
        del clip, sam, umci
        build(
            BuildOptions(
                preset,
                output,
                replace(origin.checkpoints, **weights),
                categories=(*origin.categories, category),
                defects=origin.defects,
                precisions=tuple(args.precision),
                attention=usual_attention(args.precision),
                threads=args.threads,
                adapted={**adapted.facts, "before": adapted.before, "after": adapted.after},
            )
        )
        kept = weights_folder(output)
        for path in weights.values():
            write_bytes(kept / path.name, path.read_bytes())
        finish(work)
    print(
        f"\nBuilt {args.output}, adapted to {category!r}. It is no longer zero-shot; limits and "
        f"calibrations of other bundles do not hold for it. The weights are kept in {kept}.\n"
        f'Use it:\n  clipsam inspect {args.output} IMAGE --category "{category}" --output out'
    )
    return 0


@dataclass(frozen=True)
class Origin:
    """What is adapted: a preset, its weights, the words a bundle knows already, its digests."""

    name: str
    preset: Preset
    checkpoints: Checkpoints
    categories: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    def check(self, digests: Mapping[str, str]) -> None:
        """Raise WeightsError where the weights are not those of the bundle."""
        for part, wanted in self.digests.items():
            if digests.get(part) != wanted:
                raise WeightsError(
                    f"The {part.upper()} weights are not those that {self.name} was built with: "
                    f"give the file as --{part}-weights, or adapt the preset {self.preset.name} "
                    "instead."
                )


def find_origin(args: argparse.Namespace) -> Origin:
    """What to start from. Raises BundleError."""
    flags = {"clip": args.clip_weights, "sam": args.sam_weights, "umci": args.umci_weights}
    given: dict[str, Any] = {part: path for part, path in flags.items() if path is not None}
    name = str(args.model)
    if name in PRESETS and not Path(name).is_dir():
        return Origin(name, PRESETS[name], Checkpoints(**given, random_seed=args.random_weights))
    if not Path(name).is_dir():
        raise BundleError(
            f"{name} is neither a bundle's folder nor one of the presets {', '.join(PRESETS)}."
        )
    bundle = Bundle.open(name)
    preset, digests = built_from(bundle.manifest.provenance)
    digests.pop("naming", None)  # of a CLIP, whose embedding may be adapted
    if preset not in PRESETS or set(digests) != {"clip", "sam", "umci"}:
        raise BundleError(
            f"{name} does not say which preset and weights it was built from: name the preset and "
            "its weights instead."
        )
    seeds = [seed for seed in map(seed_of, digests.values()) if seed is not None]
    given["random_seed"] = seeds[0] if seeds else None
    checkpoints = replace(Checkpoints.beside(Path(name)), **given)
    defects = bundle.namer.words if bundle.namer else ()
    return Origin(name, PRESETS[preset], checkpoints, bundle.manifest.categories, defects, digests)


def table(adapted: Adapted) -> str:
    """Before and after, in percent, a row a set of pictures."""
    lines = [f"{'':42}" + "".join(f"{title:>22}" for title in _COLUMNS.values())]
    for name, title in _ROWS.items():
        if name not in adapted.before:
            continue
        cells = [
            f"{100 * adapted.before[name][c]:8.1f} to {100 * adapted.after[name][c]:5.1f}"
            if c in adapted.before[name]
            else "-"
            for c in _COLUMNS
        ]
        lines.append(f"{title:42}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _why_not(adapted: Adapted) -> str:
    if adapted.gain < LEAST_GAIN:
        return (
            f"It is no better: image AUROC and pixel AP of planted defects changed by "
            f"{100 * adapted.gain:+.1f} points on average, and {100 * LEAST_GAIN:.0f} are asked "
            "for. More pictures of good parts or more --minutes may help."
        )
    if adapted.true_gain < 0:
        return (
            f"It is no better on true defects: image AUROC and pixel AP changed by "
            f"{100 * adapted.true_gain:+.1f} points on average. More pictures of good parts, or a "
            "lower --learning-rate, may help."
        )
    return (
        f"It forgot too much: pixel AP on procedural pictures fell by {100 * adapted.forgot:.1f} "
        "points. A lower --learning-rate may help."
    )


def _save(
    adapted: Adapted, work: Path, preset: Preset, clip: CLIP, sam: Sam, clip_digest: str
) -> dict[str, Any]:
    """Write what was trained into the work folder: the files by what they hold."""
    paths = {"umci": work / "umci.safetensors"}
    if adapted.embedding is not None:  # SAM keeps the embedding it was trained with
        paths |= {"clip": work / "clip.safetensors", "sam": work / "sam.safetensors"}
        save_weights(sam.state_dict(), paths["sam"], "sam")
        state = clip.state_dict()
        state |= {f"visual.conv1.{name}": value for name, value in adapted.embedding.items()}
        save_weights(state, paths["clip"], "clip")
        clip_digest = sha256(paths["clip"])
    metadata = {
        "umci": preset.umci.to_json(),
        "clip_sha256": clip_digest,
        "image_size": str(preset.clip_image_size),
        "features_list": json.dumps(preset.features_list),
        "adapted": json.dumps(adapted.facts),
    }
    save_weights(adapted.tensors, paths["umci"], "umci", metadata)
    return paths


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keep a second run out of the work folder, which goes again if nothing came into it."""

    def busy() -> None:
        raise OutputError(
            f"Another process is adapting into {work}: wait for it, end it, or choose another "
            "--output."
        )

    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / "lock").touch()
    except OSError as error:
        raise OutputError(
            f"{work} cannot be written to ({error.strerror or error}): choose another --output."
        ) from error
    with locked(work / "lock", busy):
        try:
            yield
        finally:
            if work.is_dir() and [path.name for path in work.iterdir()] == ["lock"]:
                finish(work)  # nothing to go on from


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam adapt", __doc__)
    add = parser.add_argument
    add("model", metavar="BUNDLE_OR_PRESET", help=f"a bundle, or one of {', '.join(PRESETS)}")
    add("--good", type=Path, required=True, metavar="FOLDER", help="pictures of good parts")
    add("--output", type=Path, required=True, metavar="FOLDER", help="the new bundle")
    add("--category", default="object", metavar="WORD", help="what the part is (default: object)")
    add(
        "--defective",
        type=Path,
        metavar="FOLDER",
        help="pictures of defective parts: never trained on, but no bundle is written if they are "
        "found worse than before",
    )
    add_view(parser)
    add("--minutes", type=number(0), default=15.0, help="of training (default: 15)")
    add("--steps", type=whole_number(), help="exactly so many steps instead of --minutes")
    add("--seed", type=whole_number(0, 2**20), default=0)
    add("--learning-rate", type=number(0), default=3e-4)
    add(
        "--frozen-clip",
        action="store_true",
        help="of tiny: leave CLIP's convolutional embedding as it is and train UMCI alone",
    )
    add("--precision", nargs="+", default=["fp32"], choices=("fp32", "fp16"), help="of the bundle")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=whole_number(), help="CPU threads (default: all cores)")
    for part in ("clip", "sam", "umci"):
        add(f"--{part}-weights", type=Path, metavar="FILE", help="as for `clipsam export`")
    add("--random-weights", type=whole_number(0), metavar="SEED", help="for checks only")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
