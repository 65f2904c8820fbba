"""What defects, and things that are none, are called.

Every kind that the generator draws has the word that a bundle shows, words and phrases by which the
naming head learns it, and others that no training sees, by which it is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipsam.research.models.prompt_ensemble import encode_sentences

TEMPLATES = (
    "{}", "a {}", "the {}", "an object with a {}", "a surface with a {}", "a photo of a {}",
    "a part with {}", "a close-up photo of a {}",
)  # fmt: skip
_AT_ONCE = 256  # sentences


@dataclass(frozen=True)
class KindWords:
    """A kind of the generator.

    Attributes:
      name: as `DefectKind` has it, or a thing that belongs to the part.
      group: what an inspector would call it at a glance; "" for what is no defect.
      word: what a bundle shows.
      learned: further words and phrases that training uses.
      held_out: some that it does not.
    """

    name: str
    group: str
    word: str
    learned: tuple[str, ...]
    held_out: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _kind(name: str, group: str, word: str, learned: str, held_out: str) -> KindWords:
    return KindWords(name, group, word, _words(learned), _words(held_out))


KIND_WORDS: tuple[KindWords, ...] = (
    _kind("scratch", "lines", "scratch",
        "scratches, thin scratch, long scratch, fine scratch, scuff, scrape, score line, gouge",
        "long thin scratch, fine scratches, scratch mark, scraped line"),
    _kind("crack", "lines", "crack",
        "cracks, fracture, fissure, hairline crack, split, branching crack, fractures",
        "fine crack, branching fracture, long cracks, fissures"),
    _kind("hole", "pits", "hole",
        "holes, pore, pores, pit, pits, blowhole, pinhole, cavity, puncture",
        "small hole, small pores, deep pit, void"),
    _kind("blob", "pits", "spot",
        "spots, blob, lump, dark spot, bright spot, dot, speck, blobs, round spot",
        "small spot, blobs and spots, round blob, lumps"),
    _kind("stain", "areas", "stain",
        "stains, discoloration, discolored area, soiling, dirt, smudge, water stain, oil stain",
        "dirty stain, discolored stain, smudges, oily stains"),
    _kind("foreign texture", "foreign matter", "foreign material",
        "foreign texture, contamination, foreign body, foreign object, contaminant, debris",
        "foreign matter, foreign bodies, contamination with foreign material, foreign particle"),
    _kind("chipped edge", "edges", "chip",
        "chipped edge, broken edge, chips, chipped corner, edge chip, nick, notch",
        "chip at the edge, chipped border, notched edge, nicks"),
    _kind("missing part", "edges", "missing part",
        "missing piece, broken off piece, missing parts, piece broken off, incomplete part, "
        "cut off part, missing component",
        "missing corner, broken off part, part is missing, incomplete piece"),
    _kind("dent", "dents", "dent",
        "dents, bump, bumps, dented area, bulge, deformation, depression, dimple",
        "small dent, dented surface, bumps and dents, bulges"),
    _kind("patch", "areas", "patch",
        "patches, ragged patch, irregular patch, blotch, flaking area, scale patch, peeled area",
        "irregular patches, large patch, ragged blotch, flaked patch"),
    _kind("inclusion", "foreign matter", "inclusion",
        "inclusions, streak, streaks, embedded particle, slag inclusion, embedded streak",
        "inclusion streak, embedded inclusion, slag streaks, embedded particles"),
    _kind("uneven", "areas", "uneven area",
        "uneven surface, unevenness, uneven, irregular surface, wavy surface, uneven shading",
        "uneven region, surface is uneven, unevenly shaded, wavy area"),
    _kind("fray", "edges", "frayed edge",
        "fray, frayed, fraying, loose thread, loose threads, frayed border, torn fibres",
        "frayed threads, edge is frayed, fraying border, torn threads"),
    _kind("printed text", "", "printed text",
        "text, printed letters, letters, lettering, printed date, date code, serial number, "
        "label, imprint, digits",
        "printed digits, printed label, letters and digits, printed serial number"),
    _kind("seam", "", "seam",
        "seam line, joint, joint line, parting line, weld seam, straight seam",
        "parting seam, weld joint, straight joint, seams"),
    _kind("mark", "", "mark",
        "marking, printed mark, groove, engraved ring, solder pads, pads, pattern, decoration",
        "engraved mark, printed pattern, engraved pattern, ring mark"),
    _kind("drilled hole", "", "drilled hole",
        "bore, bore hole, screw hole, through hole, drilled holes, round opening",
        "bore holes, drilled opening, screw holes, round bore"),
)  # fmt: skip
KIND_NAMES = tuple(kind.name for kind in KIND_WORDS)
DEFAULT_WORDS = tuple(kind.word for kind in KIND_WORDS)

# Words that name no defect: what they say must be near to no region.
MEANINGLESS = _words(
    "banana, window, garden, music, elephant, river, tuesday, happiness, keyboard, democracy, "
    "holiday, mountain, coffee, bicycle, library, orchestra, weather, kitchen, history, sofa, "
    "pencil, dolphin, castle, ticket, breakfast, economy, guitar, forest, lawyer, planet, xqzt, "
    "blorf, wug, zzyzx, flimp, qwerty, snark, vorpal, glorp, mxyz, a good part, nothing at all, "
    "a cup of coffee, the quick fox, long holiday, thin elephant, small music, printed river"
)
MEANINGLESS_HELD_OUT = _words(
    "giraffe, telephone, sunday, philosophy, umbrella, blurfle, krzt, wibble, yonder, a cup of "
    "tea, the lazy dog, small telephone, long philosophy, bright umbrella, violin, parliament"
)


@torch.no_grad()
def word_features(clip: Any, tokenizer: Callable[[list[str]], Tensor], words: list[str]) -> Tensor:
    """[K,C_t] of the words: the mean over `TEMPLATES` of the sentences' embeddings, each of length
    1, brought to length 1."""
    sentences = [template.format(word) for word in words for template in TEMPLATES]
    parts = []
    for start in range(0, len(sentences), _AT_ONCE):
        tokens = tokenizer(sentences[start : start + _AT_ONCE]).to(clip.logit_scale.device)
        parts.append(F.normalize(encode_sentences(clip, tokens).float(), dim=-1))
    each = torch.cat(parts).unflatten(0, (len(words), len(TEMPLATES)))
    return F.normalize(each.mean(dim=1), dim=-1)
