"""Tables 2 and 3 of the paper on any data set: what each part and each setting of the method adds.

    python -m clipsam.research.ablations bundles/tiny synthetic
    python -m clipsam.research.ablations bundles/tiny path/to/steel --category steel
    python -m clipsam.research.ablations bundles/paper path/to/mvtec --preset paper \
        --umci_weights runs/full/umci.safetensors --runs runs --table 3

CLIP runs once an image in PyTorch (on `--device`, a GPU where there is one); on its tokens the
rough maps are made: patch-text similarity ("w/o UMCI"), UMCI with the strip path only, with the
scale path only, and whole (table 2), or UMCI of other widths c_h and pool sizes s, and other
thresholds (table 3). SAM is the bundle's, in fp32 unless told, on the fastest provider that opens
it here; the row "w/o MMR" stops before it. Every row's pixels are pooled as in `evaluate`. A row
whose UMCI weights are not given is left out and named: `--runs` is searched for them (a file says
what it was trained as; `tiny` has some in weights/tiny/ablations).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from clipsam.research.cli.run import add_dataset, check_outputs, run_command
from clipsam.research.data.datasets import LabelledImage, recognise
from clipsam.research.data.selection import select_items
from clipsam.research.evaluation.ablation_rows import (
    Variant,
    missing_rows,
    table_2,
    table_3,
)
from clipsam.research.evaluation.opening import add_bundle_flags, open_bundle, runs_on
from clipsam.research.evaluation.protocols import check_protocol, format_protocol, protocol_notes
from clipsam.research.evaluation.tables import (
    Row,
    Tally,
    format_errors,
    format_rows,
    table,
    to_csv,
)
from clipsam.research.models.checkpoints import TINY_WEIGHTS, load_clip, load_umci, trained_preset
from clipsam.research.models.clip import ClipFeatures, PatchTextSimilarity, normalise
from clipsam.research.models.device import best_device, torch_device
from clipsam.research.models.presets import PRESETS, Preset, get_tokenizer
from clipsam.research.models.prompt_ensemble import text_features
from clipsam.research.models.umci import UMCIConfig
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.commands.parser import command_parser, whole_number
from clipsam.runtime.core.errors import DatasetError
from clipsam.runtime.core.files import write_bytes
from clipsam.runtime.images.image import Image
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.fusion import fixed_scale, fuse
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts


class Ablations:
    """One CLIP and one SAM, several ways to a final map."""

    def __init__(
        self, preset: Preset, clip: Any, model: ClipSAM, variants: Sequence[Variant], device: str
    ) -> None:
        self.clip, self.variants, self.device = clip, variants, device
        self.features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
        self.sam = model.segmenter
        self.masks_per_box = model.masks_per_box
        self.mask_weight = model.bundle.manifest.fusion.mask_weight
        self.tokenizer = get_tokenizer()
        self._text: dict[str, Tensor] = {}

    @torch.no_grad()
    def finals(self, image: Image, category: str) -> dict[str, tuple[NDArray[np.float32], float]]:
        """The final map float32 [H,W] of every row, on the fixed scale of Eq. 9, and the score."""
        if category not in self._text:
            self._text[category] = text_features(self.clip, self.tokenizer, category)[None]
        size, (height, width) = self.features.image_size, image.shape[:2]
        pixels = torch.from_numpy(clip_input(image, size)).to(self.device)
        taps = self.features(normalise(pixels))
        embedding = None
        rough_maps: dict[int, NDArray[np.float32]] = {}
        finals = {}
        for variant in self.variants:
            rough = rough_maps.get(id(variant.maker))
            if rough is None:
                small = variant.maker(taps, self._text[category], size)[0].cpu().numpy()
                rough = np.asarray(cv2.resize(small, (width, height)), np.float32)
                rough_maps[id(variant.maker)] = rough
            prompts = find_prompts(rough, variant.prompts)
            masks = None
            if variant.refine and len(prompts):
                embedding = embedding or self.sam.encode(image)
                masks = self.sam.decode(embedding, prompts)
            final = fixed_scale(
                fuse(rough, masks, self.mask_weight), self.masks_per_box, self.mask_weight
            )
            finals[variant.name] = final, prompts.score
        return finals


def measure(
    ablations: Ablations, items: Iterable[LabelledImage], size: int, by_defect: bool
) -> dict[str, Tally]:
    """Every row's maps of every item, at `size` pixels a side (0: image size)."""
    tallies = {variant.name: Tally(size, by_defect) for variant in ablations.variants}
    for item in items:
        image, mask = item.load() if item.has_truth else (item.load_image(), None)
        for name, (final, score) in ablations.finals(image, item.category).items():
            tallies[name].add(item, final, mask, score)
    return tallies


def find_runs(folder: Path, preset: Preset) -> dict[Path, UMCIConfig]:
    """Every umci*.safetensors under a folder that belongs to the preset's CLIP, by what it says."""
    found = {}
    for path in sorted(folder.rglob("umci*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                config = UMCIConfig.from_json((file.metadata() or {}).get("umci", "{}"))
        except (SafetensorError, ValueError, TypeError):
            continue
        wanted = preset.umci
        if (config.visual_dim, config.text_dim) == (wanted.visual_dim, wanted.text_dim):
            found[path] = config
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    number = args.table
    check_outputs(args.json, args.csv)
    items = select_items(
        args.dataset, args.category, args.count, args.size or 0, args.each, args.layout
    )
    torch_device(args.device)  # before the gigabytes
    bundle = Bundle.open(args.bundle, verify=False)
    preset = trained_preset(PRESETS[args.preset], args.umci_weights)[0]
    clip = load_clip(preset, args.clip_weights)[0].eval().to(args.device)
    variants = _variants(args, preset, clip, bundle.manifest.prompts)
    known = recognise(items)
    published = known is not None and known[0] == "mvtec"  # the paper's tables 2 and 3 are about it
    size = args.size if args.size is not None else preset.clip_image_size if published else 0
    resolution = f"{size}x{size} px" if size else "image size"
    by_defect = len({item.group for item in items}) == 1 and not published
    with open_bundle(bundle, args.provider, args.threads, args.precision) as model:
        ablations = Ablations(preset, clip, model, variants, args.device)
        tallies = measure(ablations, tqdm(items, unit="image"), size, by_defect)
        ran = f"{preset.name} on {args.device}, SAM of {bundle.id} on {runs_on(model)}"
    facts = {"model": ran, "resolution": resolution}
    rows = [
        {"set": name, **summary(tally), **facts, "norm": "fixed"} for name, tally in tallies.items()
    ]
    mean = "defects" if by_defect else "categories"
    print(f"{ran}\n{args.dataset}, mean over {mean}, pooled pixels at {resolution}")
    print(format_rows(rows, first="row"))
    notes = [format_errors(rows), *missing_rows(number, tallies)]
    if published:
        dataset, warnings = check_protocol(number, items)
        if args.each is not None:
            warnings.append(f"only {args.each} images of each defect: not comparable")
        print("\n" + format_protocol(number, dataset, [(str(row["set"]), row) for row in rows]))
        notes += [*protocol_notes(number, dataset, resolution), *warnings]
    for note in notes:
        print(f"note: {note}")
    if args.json:
        write_bytes(args.json, json.dumps(rows, indent=1).encode())
    if args.csv:
        write_bytes(args.csv, to_csv(rows))
    return 0


def _variants(
    args: argparse.Namespace, preset: Preset, clip: Any, prompts: PromptOptions
) -> list[Variant]:
    """The rows whose weights there are."""
    if args.runs is not None and not args.runs.is_dir():
        raise DatasetError(f"There is no folder {args.runs}: give the one that holds the runs.")
    runs = find_runs(args.runs, preset) if args.runs else {}
    if preset.name == "tiny":
        runs = {**find_runs(TINY_WEIGHTS / "ablations", preset), **runs}
    model = load_umci(preset, args.umci_weights)[0].to(args.device)
    if args.table == 3:
        others = [
            (config, load_umci(preset, path)[0].to(args.device).rough_map)
            for path, config in runs.items()
            if config != model.config
        ]
        return table_3(prompts, model.config, model.rough_map, others)
    files = {c.paths[0]: p for p, c in runs.items() if len(c.paths) == 1}
    paths = {
        name: load_umci(preset, files[name])[0].to(args.device).rough_map
        for name in sorted(files, reverse=True)  # strip, scale: the paper's order
    }
    return table_2(prompts, PatchTextSimilarity(clip.visual).rough_map, model.rough_map, paths)


def summary(tally: Tally) -> Row:
    """The mean over a data set's categories or defects, or its only defect's row."""
    rows = table(tally)
    row = next((row for row in rows if row["set"] == "mean"), rows[0])
    return {key: value for key, value in row.items() if key != "set"}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam ablations", __doc__)
    parser.add_argument("bundle", type=Path, help="whose SAM and prompt options are used")
    add_dataset(parser)
    parser.add_argument("--table", type=int, choices=(2, 3), default=2)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--clip_weights", type=Path)
    parser.add_argument("--umci_weights", type=Path)
    parser.add_argument("--runs", type=Path, help="folder searched for umci.safetensors files")
    parser.add_argument("--device", default=best_device(), help="of CLIP and UMCI, in PyTorch")
    add_bundle_flags(parser, "fp32")
    parser.add_argument(
        "--size",
        type=whole_number(0),
        help="side for the metrics; 0: image size (default: CLIP's input for MVTec AD, else 0)",
    )
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    parser.add_argument("--csv", type=Path, help="write the table as CSV")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
