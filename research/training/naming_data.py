"""Regions with names: what the naming head learns from, of procedural pictures and of data sets.

Pictures are looked at once by a frozen CLIP and UMCI. Their regions are what the rough map finds,
as an inspection would, beside the true outlines of defects and of what belongs to the part; kept of
them are the tokens within and around. Every file of the folder holds some pictures, so that the
same call goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from clipsam.research.data.samples import LabelledImage
from clipsam.research.models.clip import ClipFeatures, compared_tokens, normalise
from clipsam.research.models.defect_words import KIND_NAMES
from clipsam.research.models.presets import Preset, get_tokenizer
from clipsam.research.models.prompt_ensemble import text_features
from clipsam.research.models.umci import UMCIStages
from clipsam.research.synthetic.sample import Sample, make_sample
from clipsam.runtime.core.files import write_with
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.appearance import Cells
from clipsam.runtime.stages.naming import RegionLook, component_mask, look_at
from clipsam.runtime.stages.preprocess import clip_input
from clipsam.runtime.stages.prompts import find_prompts

FOUND, TRUE = 0, 1  # where a region comes from: the rough map, or what was drawn
NOTHING = -1  # the kind of a region that is nothing: the map was wrong
_A_FILE = 64  # pictures
_SMALLEST = 9  # pixels of what was drawn, to be a region
_MOST = 8  # regions of the map
INSIDE, AROUND = 32, 16  # tokens that are kept of a region for training
_COVERED = 0.3  # share of a region of the map that is one kind, to be called so
_MASKED = 0.25  # share of a pixel of CLIP's input that a mask covers, to belong to the defect


@dataclass(frozen=True, eq=False)
class NamedRegion:
    """A region and its kind: an index in `KIND_NAMES`, or NOTHING; `tokens` float16 [n,C] are those
    of its look, whose index counts them in their picture."""

    picture: int
    source: int
    kind: int
    area: int
    tokens: NDArray[np.float16]
    look: RegionLook


class Looker:
    """A frozen CLIP and UMCI that look at pictures, with `bf16` in mixed precision."""

    def __init__(
        self,
        preset: Preset,
        clip: Any,
        umci: UMCIStages,
        device: torch.device,
        *,
        bf16: bool = False,
    ) -> None:
        self.bf16 = bf16
        self.size, self.prompts = preset.clip_image_size, preset.prompts
        self.clip, self.device = clip.to(device).eval(), device
        self.features = ClipFeatures(clip.visual, preset.features_list, self.size).to(device)
        self.umci = umci.to(device).eval()
        self._tokenizer, self._text = get_tokenizer(), dict[str, torch.Tensor]()

    @property
    def grid(self) -> int:
        """Tokens a side."""
        return self.features.grid

    @torch.no_grad()
    def __call__(self, image: Image, category: str) -> tuple[NDArray[Any], NDArray[np.float16]]:
        """Rough map float32 [S,S] and tokens float16 [N,C] of an image uint8 [S,S,3]."""
        if category not in self._text:
            self._text[category] = text_features(self.clip, self._tokenizer, category)
        text = self._text[category][None].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            taps = self.features(normalise(torch.from_numpy(image)[None].to(self.device)))
            rough = self.umci.rough_map(taps, text, self.size)
        return rough[0].float().cpu().numpy(), compared_tokens(taps)[0].cpu().numpy()


@dataclass(frozen=True, eq=False)
class Picture:
    """CLIP's input uint8 [S,S,3], the word for the part, and what it shows: indices of kinds with
    masks bool [S,S]."""

    image: Image
    category: str
    drawn: Sequence[tuple[int, NDArray[np.bool_]]]


def sample_of(seed: int, size: int) -> Sample:
    """A picture with defects of every kind alike, often of several."""
    return make_sample(np.random.default_rng(seed), size, defect_rate=0.95, even=True)


def drawn_picture(seed: int, size: int) -> Picture:
    """`sample_of` with the kinds of `KIND_NAMES`."""
    sample = sample_of(seed, size)
    things = [*sample.defects, *(p for p in sample.parts if p.kind in KIND_NAMES)]
    drawn = [(KIND_NAMES.index(item.kind), item.mask) for item in things]
    return Picture(sample.image, sample.category, drawn)


def photograph(item: LabelledImage, kind: int, size: int) -> Picture:
    """An image of a data set as CLIP sees it; every connected area of its mask is of this kind."""
    image, mask = item.load()
    small = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    count, areas = cv2.connectedComponents((small >= _MASKED).astype(np.uint8))
    drawn = [(kind, areas == number) for number in range(1, count)]
    return Picture(clip_input(image, size)[0], item.category, drawn)


def regions_of(picture: Picture, number: int, looker: Looker) -> Iterator[NamedRegion]:
    """The regions of a picture: those of the map first."""
    rough, tokens = looker(picture.image, picture.category)
    drawn = picture.drawn
    found = find_prompts(rough, looker.prompts).components[:_MOST]
    masks = [(FOUND, component_mask(c, rough.shape)) for c in found]
    named = [(source, kind_of(mask, drawn), mask) for source, mask in masks]
    named += [(TRUE, kind, mask) for kind, mask in drawn if int(mask.sum()) >= _SMALLEST]
    cells = Cells.of(picture.image, looker.grid)
    for source, kind, mask in named:
        look = look_at(mask, cells)
        area = int(mask.sum())
        yield NamedRegion(number, source, kind, area, tokens[look.index], look)


def kind_of(mask: NDArray[np.bool_], drawn: Sequence[tuple[int, NDArray[np.bool_]]]) -> int:
    """The kind that covers most of a region, or of which most lies in it."""
    covered: dict[int, float] = {}
    for kind, other in drawn:
        both = float((mask & other).sum())
        if both > _COVERED * mask.sum() or both > 0.5 * other.sum():
            covered[kind] = covered.get(kind, 0.0) + both
    return max(covered, key=lambda kind: covered[kind]) if covered else NOTHING


def thinned(region: NamedRegion) -> NamedRegion:
    """The region with INSIDE of its tokens and AROUND of those around it at most."""
    rng = np.random.default_rng([region.picture, region.area])
    sides = (region.look.inside, INSIDE), (~region.look.inside, AROUND)
    rows = np.concatenate([rng.permutation(np.flatnonzero(side))[:most] for side, most in sides])
    look = region.look
    look = replace(look, index=look.index[rows], inside=look.inside[rows], place=look.place[rows])
    return replace(region, tokens=region.tokens[rows], look=look)


def gather(
    looker: Looker,
    folder: Path,
    first: int,
    pictures: int,
    about: str,
    *,
    thin: bool = False,
    draw: Callable[[int], Picture] | None = None,
) -> list[NamedRegion]:
    """The regions of `pictures` pictures, numbered from `first`, kept in `folder`; `thin` ones for
    training. `draw` makes a picture of its number, by default `drawn_picture`.

    `about` names the weights and what is drawn: files of others are made again.
    """
    draw = draw or (lambda seed: drawn_picture(seed, looker.size))
    folder.mkdir(parents=True, exist_ok=True)
    facts = [about, first, _A_FILE, thin, 6, *(["bf16"] if looker.bf16 else [])]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    regions: list[NamedRegion] = []
    with tqdm(total=pictures, desc="pictures", unit="") as bar:
        for start in range(0, pictures, _A_FILE):
            count = min(_A_FILE, pictures - start)
            path = folder / f"{key}-{start:07}-{count}.npz"
            if not path.is_file():
                some = [
                    thinned(region) if thin else region
                    for number in range(start, start + count)
                    for region in regions_of(draw(first + number), number, looker)
                ]
                _write(path, some)
            regions += _read(path)
            bar.update(count)
    return regions


def _write(path: Path, regions: Sequence[NamedRegion]) -> None:
    facts = [(r.picture, r.source, r.kind, r.area, len(r.look.index)) for r in regions]
    looks = [r.look for r in regions]

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(
                file,
                facts=np.array(facts, np.int64).reshape(-1, 5),
                tokens=np.concatenate([r.tokens for r in regions]),
                index=np.concatenate([look.index for look in looks]).astype(np.int32),
                inside=np.concatenate([look.inside for look in looks]),
                place=np.concatenate([look.place for look in looks]).astype(np.float16),
                shape=np.stack([look.shape for look in looks]),
                shown=np.stack([look.shown for look in looks]),
            )

    write_with(path, save)


def _read(path: Path) -> Iterator[NamedRegion]:
    with np.load(path) as stored:
        data = {name: stored[name] for name in stored.files}
    start = 0
    rows = zip(data["facts"].tolist(), data["shape"], data["shown"], strict=True)
    for row, shape, shown in rows:
        picture, source, kind, area, count = row
        own = slice(start, start + count)
        look = RegionLook(
            data["index"][own].astype(np.intp),
            data["inside"][own],
            data["place"][own].astype(np.float32),
            shape,
            shown,
        )
        yield NamedRegion(picture, source, kind, area, data["tokens"][own], look)
        start += count
