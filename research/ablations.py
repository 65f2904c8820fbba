"""Table 2 of the paper on any data set: what each part of the method adds.

    python -m clipsam.research.ablations bundles/tiny synthetic
    python -m clipsam.research.ablations bundles/tiny path/to/steel --category steel

CLIP runs once an image in PyTorch; on its tokens four rough maps are made: patch-text similarity
("w/o UMCI"), UMCI with the strip path only, with the scale path only, and whole. SAM is the
bundle's; the row "w/o MMR" stops before it. Every row's pixels are pooled as in `evaluate`. A row
whose UMCI weights are not given is left out (`tiny` has them in weights/tiny/ablations).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from clipsam.research.clip_features import ClipFeatures, PatchTextSimilarity, normalise
from clipsam.research.datasets import LabelledImage
from clipsam.research.evaluate import Measured, format_rows, select_items, table
from clipsam.research.presets import PRESETS, Preset, get_tokenizer
from clipsam.research.text_prompts import text_features
from clipsam.research.weights import TINY_WEIGHTS, load_clip, load_umci
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.errors import ClipSAMError
from clipsam.runtime.files import write_bytes
from clipsam.runtime.fusion import fixed_scale, fuse
from clipsam.runtime.preprocess import Image, clip_input
from clipsam.runtime.prompts import find_prompts
from clipsam.runtime.segment import Segmenter
from clipsam.runtime.session import open_session

RoughMap = Callable[[Sequence[Tensor], Tensor, int], Tensor]  # taps, text, S -> O_f [1,S,S]
WITHOUT_MMR = "w/o MMR"


def rough_maps(preset: Preset, clip: Any, umci: Mapping[str, Path | None]) -> dict[str, RoughMap]:
    """The makers of a rough map, by the row's name; `umci` names the weights of each (None: the
    preset's own)."""
    makers: dict[str, RoughMap] = {"w/o UMCI": PatchTextSimilarity(clip.visual).rough_map}
    for name, path in umci.items():
        makers[name] = load_umci(preset, path)[0].rough_map
    return makers


class Ablations:
    """One CLIP and one SAM, several ways to a rough map."""

    def __init__(
        self, preset: Preset, clip: Any, bundle: Bundle, makers: Mapping[str, RoughMap]
    ) -> None:
        self.clip, self.makers, self.manifest = clip, makers, bundle.manifest
        self.features = ClipFeatures(clip.visual, preset.features_list, preset.clip_image_size)
        sessions = [
            open_session(bundle.graph_path(n), "cpu") for n in ("sam_encoder", "sam_decoder")
        ]
        self.sam = Segmenter(*sessions)
        self.masks_per_box = int(sessions[1].outputs["logits"].shape[1])
        self.tokenizer = get_tokenizer()
        self._text: dict[str, Tensor] = {}

    @torch.no_grad()
    def finals(self, image: Image, category: str) -> dict[str, NDArray[np.float32]]:
        """The final map float32 [H,W] of every row, on the fixed scale of Eq. 9."""
        if category not in self._text:
            self._text[category] = text_features(self.clip, self.tokenizer, category)[None]
        size, (height, width) = self.features.image_size, image.shape[:2]
        taps = self.features(normalise(torch.from_numpy(clip_input(image, size))))
        embedding, finals = None, {}
        for name, maker in self.makers.items():
            small = maker(taps, self._text[category], size)[0].numpy()
            rough = np.asarray(cv2.resize(small, (width, height)), np.float32)
            prompts = find_prompts(rough, self.manifest.prompts)
            masks = None
            if len(prompts):
                embedding = embedding or self.sam.encode(image)
                masks = self.sam.decode(embedding, prompts)
            finals[name] = fixed_scale(fuse(rough, masks), self.masks_per_box)
        finals[WITHOUT_MMR] = fixed_scale(rough, self.masks_per_box)  # of the last: the whole UMCI
        return finals


def measure(
    ablations: Ablations, items: Iterable[LabelledImage], size: int
) -> dict[str, list[Measured]]:
    """Every row's maps of every item, at `size` pixels a side (0: image size)."""
    measured: dict[str, list[Measured]] = {}
    for item in items:
        image, mask = item.load()
        for name, final in ablations.finals(image, item.category).items():
            measured.setdefault(name, []).append(Measured.at_size(item, final, mask, size))
    return measured


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except ClipSAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    preset = PRESETS[args.preset]
    clip, _ = load_clip(preset, args.clip_weights)
    umci: dict[str, Path | None] = {}
    for name in ("strip", "scale"):
        path = getattr(args, f"{name}_weights")
        shipped = TINY_WEIGHTS / "ablations" / f"umci-{name}.safetensors"
        if path is None and preset.name == "tiny" and shipped.is_file():
            path = shipped
        if path is not None:
            umci[f"{name} path only"] = path
    makers = rough_maps(preset, clip.eval(), {**umci, "full": args.umci_weights})
    ablations = Ablations(preset, clip, Bundle.open(args.bundle), makers)
    items = select_items(args.dataset, args.category, args.count, args.size, args.limit)
    measured = measure(ablations, tqdm(items, unit="image"), args.size)
    order = [name for name in (*measured, "full") if name != "full"] + ["full"]
    rows = [{"set": name, **summary(measured[name])} for name in order]
    print(f"{args.dataset}, mean over defects\n{format_rows(rows, first='row')}")
    if args.json:
        write_bytes(args.json, json.dumps(rows, indent=1).encode())
    return 0


def summary(measured: Sequence[Measured]) -> dict[str, float | str]:
    """The mean over a data set's defects, or its only defect's row."""
    rows = table(measured)
    row = next((row for row in rows if row["set"] == "mean"), rows[0])
    return {key: value for key, value in row.items() if key != "set"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Table 2: what each part of the method adds.")
    parser.add_argument("bundle", type=Path, help="whose SAM and prompt options are used")
    parser.add_argument("dataset", help="a folder in MVTec AD's layout, or `synthetic`")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--clip_weights", type=Path)
    parser.add_argument("--umci_weights", type=Path)
    parser.add_argument("--strip_weights", type=Path, help="UMCI trained with --paths strip")
    parser.add_argument("--scale_weights", type=Path, help="UMCI trained with --paths scale")
    parser.add_argument("--category", help="the prompts' word (default: the folder's name)")
    parser.add_argument("--size", type=int, default=0, help="side for the metrics; 0: image size")
    parser.add_argument("--limit", type=int, help="only N images of each defect, evenly spread")
    parser.add_argument("--count", type=int, default=200, help="images of the synthetic set")
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
