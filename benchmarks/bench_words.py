"""What words do: names of regions, kinds asked for and ignored, words never learned.

    python benchmarks/bench_words.py names bundles/tiny   # of procedural regions that are held out
    python benchmarks/bench_words.py ask bundles/tiny     # procedural pictures, asked for each kind
    python benchmarks/bench_words.py steel bundles/tiny --folder data/steel   # real photographs

A picture is looked at by CLIP and UMCI alone: neither a name nor what is asked for depends on SAM.
`names` keeps its regions in runs/, as `clipsam train-naming` does.
A region is called right where its most probable word is that of the kind it shares most with. Words
that the bundle does not have need PyTorch and the weights that it was built from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from harness.report import table
from numpy.typing import NDArray

from clipsam.research.data.datasets import open_dataset
from clipsam.research.evaluation.metrics import pixel_metrics
from clipsam.research.models.checkpoints import load_clip, load_umci
from clipsam.research.models.defect_words import (
    DEFAULT_WORDS,
    KIND_WORDS,
    MEANINGLESS_HELD_OUT,
)
from clipsam.research.models.naming import word_space
from clipsam.research.models.presets import PRESETS, Preset, get_tokenizer
from clipsam.research.training.naming_data import (
    NOTHING,
    TRUE,
    Looker,
    gather,
    kind_of,
    sample_of,
)
from clipsam.runtime import Bundle, ClipSAM
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.images.image import Image
from clipsam.runtime.stages.appearance import Cells
from clipsam.runtime.stages.kinds import KindOptions
from clipsam.runtime.stages.naming import UNKNOWN, Namer, component_mask, look_at
from clipsam.runtime.stages.prompts import PromptOptions, find_prompts
from clipsam.runtime.stages.rough_map import Looks, find_looks, look_map
from clipsam.runtime.stages.steering import Asked

HELD_OUT = 2**46  # seeds of pictures that no training sees
DEFECTS = [kind for kind in KIND_WORDS if kind.group]
STEEL = {"inclusion": "inclusion", "patches": "patch", "scratches": "scratch"}
Drawn = Sequence[tuple[int, NDArray[np.bool_]]]


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture that was looked at: its map, its tokens and what is drawn on it."""

    looks: Looks
    rough: NDArray[np.float32]
    tokens: NDArray[np.float16]
    drawn: Drawn
    gate: PromptOptions


@dataclass(frozen=True)
class Region:
    """A found region: its kind, its vector, and how many kinds its picture has."""

    kind: int
    vector: NDArray[np.float32]
    kinds: int


def look(model: ClipSAM, image: Image, category: str, drawn: Drawn) -> Seen:
    """What CLIP and UMCI see of an image HxWx3."""
    session = model.sessions["clip_umci"]
    looks = Looks.of(session, image, "off")
    ((maps, tokens),) = find_looks(session, [looks], model.bundle.text(category)[None], True)
    assert tokens is not None
    gate = model.options.gate(model.bundle.manifest.prompts, image.shape)
    return Seen(looks, look_map(maps, image, looks.grid), tokens, drawn, gate)


def procedural(model: ClipSAM, count: int) -> list[Seen]:
    """Pictures of the generator, whose defects are known."""
    names = [kind.name for kind in KIND_WORDS]
    known = set(model.bundle.manifest.categories)
    size, seen = model.bundle.manifest.clip_image_size, []
    for number in range(count):
        sample = sample_of(HELD_OUT + number, size)
        things = [*sample.defects, *(part for part in sample.parts if part.kind in names)]
        drawn = [(names.index(thing.kind), thing.mask) for thing in things]
        category = sample.category if sample.category in known else "object"
        seen.append(look(model, sample.image, category, drawn))
    return seen


def found(namer: Namer, picture: Seen) -> Iterator[Region]:
    """Every region that the map finds."""
    cells = Cells.of(picture.looks.picture, namer.grid)
    for component in find_prompts(picture.rough, picture.gate).components:
        mask = component_mask(component, picture.rough.shape)
        region_look = look_at(mask, cells)
        vector = namer.head.embed(picture.tokens, region_look)
        yield Region(kind_of(mask, picture.drawn), vector, 1)


def held_out(namer: Namer, preset: Preset, pictures: int, folder: Path) -> list[Region]:
    """Every region that the map finds in procedural pictures that no training sees."""
    clip, clip_digest = load_clip(preset, None)
    umci, umci_digest = load_umci(preset, None)
    looker = Looker(preset, clip, umci, torch.device("cpu"))
    every = gather(looker, folder, HELD_OUT, pictures, clip_digest + umci_digest)
    kinds: dict[int, set[int]] = {}
    for region in every:
        if region.source == TRUE and KIND_WORDS[region.kind].group:
            kinds.setdefault(region.picture, set()).add(region.kind)
    regions = []
    tokens = np.zeros((namer.grid**2, every[0].tokens.shape[1]), np.float16)
    for region in every:
        if region.source != TRUE:
            tokens[region.look.index] = region.tokens
            vector = namer.head.embed(tokens, region.look)
            regions.append(Region(region.kind, vector, len(kinds.get(region.picture, ()))))
    return regions


def top(namer: Namer, vector: NDArray[np.float32]) -> str:
    """The most probable word."""
    return next(iter(namer.head.kinds(vector, namer.words, namer.features)))


def named_rightly(namer: Namer, regions: Sequence[Region]) -> tuple[float, float]:
    """Shares: of regions with the right word, and of those with a word of the right group."""
    groups = {kind.word: kind.group for kind in KIND_WORDS}
    words = [top(namer, region.vector) for region in regions]
    right = [w == KIND_WORDS[r.kind].word for w, r in zip(words, regions, strict=True)]
    group = [groups.get(w) == KIND_WORDS[r.kind].group for w, r in zip(words, regions, strict=True)]
    return float(np.mean(right)), float(np.mean(group))


def confusion(namer: Namer, regions: Sequence[Region]) -> str:
    """A row a kind: how many regions, how many called right, and what the others are called."""
    rows = []
    for number, kind in enumerate(KIND_WORDS):
        called = Counter(top(namer, r.vector) for r in regions if r.kind == number)
        of = sum(called.values())
        if of:
            others = [f"{w} {n}" for w, n in called.most_common() if w != kind.word][:4]
            right = called[kind.word]
            rows.append((kind.word, kind.group, of, f"{right / of:.2f}", ", ".join(others)))
    return table(("kind", "group", "regions", "right", "the others are called"), rows)


def asked_map(namer: Namer, picture: Seen, asked: Asked) -> NDArray[np.float32]:
    """The rough map of what is asked for."""
    rough = np.array(picture.rough)
    KindOptions(namer, asked).steer(rough, picture.gate, picture.tokens, picture.looks)
    return rough


def ask_and_ignore(namer: Namer, pictures: Sequence[Seen]) -> str:
    """A row a kind: AP of its pixels in the map as it is and in the map asked for it alone; the
    share above the limit of its own area, and of other kinds', asked and ignored."""
    rows, nobody = [], frozenset[str]()
    for number, kind in enumerate(KIND_WORDS[: len(DEFECTS)]):
        some = [p for p in pictures if any(k == number for k, _ in p.drawn)]
        if not some:
            continue
        own = np.stack([area(p, {number}) for p in some])
        other = np.stack([area(p, set(range(len(DEFECTS))) - {number}) for p in some]) & ~own
        plain = np.stack([p.rough for p in some])
        word = frozenset({kind.word})
        asked = np.stack([asked_map(namer, p, Asked(word, nobody)) for p in some])
        ignored = np.stack([asked_map(namer, p, Asked(None, word)) for p in some])
        limit = some[0].gate.deciding
        rows.append(
            (
                kind.word,
                len(some),
                f"{pixel_metrics(plain, own)['ap']:.2f}",
                f"{pixel_metrics(asked, own)['ap']:.2f}",
                *(f"{100 * share(m > limit, a):.0f}" for m in (plain, asked, ignored)
                  for a in (own, other)),
            )
        )  # fmt: skip
    means = [f"{np.mean([float(str(row[c])) for row in rows]):.2f}" for c in range(2, 10)]
    head = (
        "asked for", "pictures", "AP", "AP, asked", "own, %", "others, %", "own, asked",
        "others, asked", "own, ignored", "others, ignored",
    )  # fmt: skip
    return table(head, [*rows, ("mean", "", *means)])


def area(picture: Seen, kinds: set[int]) -> NDArray[np.bool_]:
    """Where these kinds are drawn."""
    mask = np.zeros(picture.rough.shape, np.bool_)
    for kind, own in picture.drawn:
        if kind in kinds:
            mask |= own
    return mask


def share(above: NDArray[np.bool_], of: NDArray[np.bool_]) -> float:
    """Of an area that is above the limit."""
    return float(above[of].mean()) if of.any() else 0.0


def other_words(namer: Namer, preset: Preset, regions: Sequence[Region]) -> str:
    """What regions of a kind are called when the bundle has another word for it."""
    clip, _ = load_clip(preset, None)
    space = word_space(preset, clip, get_tokenizer())
    assert space is not None
    rows = []
    for title, words_of in (
        ("the word shown", lambda kind: (kind.word,)),
        ("phrases that were learned", lambda kind: kind.learned),
        ("phrases that were not", lambda kind: kind.held_out),
        ("words that mean nothing", lambda kind: MEANINGLESS_HELD_OUT),
    ):
        right, taken = [], []
        for number, kind in enumerate(DEFECTS):
            own = [r for r in regions if r.kind == number]
            for word, feature in zip(
                words_of(kind), space.features(list(words_of(kind))), strict=True
            ):
                features = namer.features.copy()
                features[number] = feature
                words = [word if i == number else w for i, w in enumerate(namer.words)]
                other = replace(namer, words=tuple(words), features=features)
                calls = [top(other, r.vector) for r in own]
                right += [c == word for c in calls]
                taken += [top(other, r.vector) == word for r in regions if r.kind != number]
        rows.append((title, f"{np.mean(right):.2f}", f"{np.mean(taken):.3f}"))
    head = ("in place of the word of a kind", "of its regions called so", "of all others")
    return table(head, rows)


def steel(model: ClipSAM, namer: Namer, folder: Path, each: int) -> str:
    """Real photographs, their three kinds by the bundle's words alone, and among all words."""
    rows = list(STEEL.values())
    chosen = [namer.words.index(word) for word in rows]
    three = replace(namer, words=tuple(rows), features=namer.features[chosen])
    lines, right = [], []
    items = open_dataset(folder).images
    for kind, word in STEEL.items():
        of_kind = [item for item in items if item.defect == kind]
        calls: Counter[str] = Counter()
        alone: Counter[str] = Counter()
        for item in of_kind[:: max(1, len(of_kind) // each)][:each]:
            image, mask = item.load()
            seen = look(model, image, "steel surface", [(0, mask > 0)])
            for region in found(namer, seen):
                if region.kind == NOTHING:
                    continue
                calls[top(namer, region.vector)] += 1
                alone[best_of(three, region.vector)] += 1
        of = sum(alone.values())
        right.append(alone[word] / max(of, 1))
        told = ", ".join(f"{w} {n}" for w, n in calls.most_common(5))
        lines.append((kind, of, *(alone[w] for w in rows), f"{right[-1]:.2f}", told))
    lines.append(("mean", "", "", "", "", f"{np.mean(right):.2f}", ""))
    return table(("kind", "regions", *rows, "right", "among all words"), lines)


def best_of(namer: Namer, vector: NDArray[np.float32]) -> str:
    """The most probable word, "unknown" left out."""
    kinds = namer.head.kinds(vector, namer.words, namer.features)
    return next(word for word in kinds if word != UNKNOWN)


def main() -> None:
    """Print the tables."""
    parser = command_parser(None, __doc__)
    parser.add_argument("what", choices=("names", "ask", "steel"))
    parser.add_argument("bundle", type=Path, help="built from the repository's weights")
    parser.add_argument("--pictures", type=int, default=640, help="procedural ones")
    parser.add_argument("--regions", type=Path, default=Path("runs/tiny/naming-regions"))
    parser.add_argument("--folder", type=Path, help="of steel, in MVTec AD's layout")
    parser.add_argument("--each", type=int, default=100, help="pictures of every kind of steel")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    namer, preset = bundle.namer, PRESETS[bundle.manifest.provenance["preset"]]
    if namer is None or namer.words[: len(DEFAULT_WORDS)] != DEFAULT_WORDS:
        raise SystemExit(f"{args.bundle} does not name regions by the default words.")
    if args.what == "names":
        names(namer, preset, held_out(namer, preset, args.pictures, args.regions))
        return
    with ClipSAM.open(bundle, threads=1) as model:
        if args.what == "ask":
            print(ask_and_ignore(namer, procedural(model, args.pictures)))
        else:
            print(steel(model, namer, args.folder, args.each))


def names(namer: Namer, preset: Preset, every: Sequence[Region]) -> None:
    """Print what regions are called."""
    regions = [r for r in every if r.kind != NOTHING and KIND_WORDS[r.kind].group]
    several = [r for r in regions if r.kinds > 1]
    for title, some in (("all", regions), ("with several kinds of defects", several)):
        right, group = named_rightly(namer, some)
        print(f"pictures {title}: {len(some)} found regions, {right:.3f} have the right word, "
              f"{group:.3f} one of its group")  # fmt: skip
    nothing = [top(namer, r.vector) for r in every if r.kind == NOTHING]
    print(f"false finds: {len(nothing)}, {nothing.count(UNKNOWN)} of them unknown")
    print(f"\n{confusion(namer, every)}\n\n{other_words(namer, preset, regions)}")


if __name__ == "__main__":
    main()
