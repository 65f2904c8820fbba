"""Teach a bundle further words: text features beside those it has, no graph is built again.

    clipsam words bundles/tiny "gear wheel" "brake disc"

The new features come from the text tower the bundle was built with, which is checked: what it says
of a word the bundle knows must be what the bundle holds. The bundle is replaced whole or not at
all, and has another id afterwards. Needs PyTorch, so it is for the machine that builds bundles.
Exit code: 0 done (or nothing to do), 1 an error, 2 wrong usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipsam.export.bundle.staging import keep_engines, link_or_copy, staged_bundle
from clipsam.export.graphs.checkpoints import Checkpoints, built_from, seed_of
from clipsam.research.cli.run import run_command
from clipsam.research.models.presets import PRESETS, get_tokenizer
from clipsam.research.models.prompt_ensemble import text_features
from clipsam.runtime.bundle import (
    MANIFEST,
    TEXT_FEATURES,
    Bundle,
    write_manifest,
    write_text_features,
)
from clipsam.runtime.core.errors import OptionError, WeightsError
from clipsam.runtime.core.files import sha256

SAME = 1e-3
"""Largest difference of a text feature (their length is 1) between two machines' arithmetic."""
_MOST_LETTERS = 200  # as the manifest has it


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args), "the bundle is as it was")


def _run(args: argparse.Namespace) -> int:
    known = Bundle.open(args.bundle)
    words = clean_words(args.words)
    new = [word for word in words if word not in known.manifest.categories]
    output = args.output or args.bundle
    if not new and output.resolve() == args.bundle.resolve():
        print(f"{args.bundle} knows every one of these words: nothing was changed.")
        return 0
    checkpoints = Checkpoints.beside(args.bundle, args.clip_weights)
    bundle = add_words(known, new, checkpoints, output)
    print(f"{output} is now bundle {bundle.id} and knows {', '.join(map(repr, words))}. Use it:")
    print(f'  clipsam inspect {output} IMAGE --category "{words[0]}" --output out')
    return 0


def clean_words(words: Sequence[str]) -> list[str]:
    """The words without blanks around them, each once. Raises OptionError for no word."""
    cleaned = [" ".join(word.split()) for word in words]
    for word in cleaned:
        if not word or len(word) > _MOST_LETTERS or not word.isprintable():
            raise OptionError(
                f"{word[:40]!r} cannot be a product's word: give one to {_MOST_LETTERS} letters "
                'that can be printed, such as "gear wheel".'
            )
    return list(dict.fromkeys(cleaned))


def add_words(
    bundle: Bundle, words: Sequence[str], checkpoints: Checkpoints, output: Path
) -> Bundle:
    """Write to `output` (the bundle's own folder, too) the bundle with text features of `words`.

    Raises WeightsError where the weights are not those of the bundle's text tower, OutputError
    where it cannot be written; then `output` is as it was.
    """
    features = _features(bundle, words, checkpoints)
    manifest = bundle.manifest
    categories = (*manifest.categories, *words)
    table = np.stack([*map(bundle.text, manifest.categories), *features])
    with staged_bundle(output) as folder:
        for name in manifest.files:
            if name != TEXT_FEATURES:
                link_or_copy(bundle.folder / name, folder / name)
        keep_engines(bundle.folder, folder)  # words are an input of theirs
        write_text_features(folder / TEXT_FEATURES, categories, table)
        files = {**manifest.files, TEXT_FEATURES: sha256(folder / TEXT_FEATURES)}
        write_manifest(folder, replace(manifest, categories=categories, files=files))
        Bundle.open(folder)  # as its users will
    return Bundle.open(output, verify=False)


def _features(
    bundle: Bundle, words: Sequence[str], checkpoints: Checkpoints
) -> list[NDArray[np.float32]]:
    """L [C_t,2] of each word, from a text tower that is the bundle's."""
    name, digests = built_from(bundle.manifest.provenance)
    if name not in PRESETS:
        raise WeightsError(
            f"{MANIFEST} of {bundle.folder} does not say which preset the bundle was built from "
            f"(it says {name!r}): build the bundle again with --categories."
        )
    noise = seed_of(digests.get("clip", ""))
    clip, _ = replace(checkpoints, random_seed=noise).load_clip(PRESETS[name])
    tokenizer = get_tokenizer()
    probe = bundle.manifest.categories[0]
    here = text_features(clip, tokenizer, probe).numpy()
    if here.shape != bundle.text(probe).shape or np.abs(here - bundle.text(probe)).max() > SAME:
        raise WeightsError(
            f"The CLIP weights are not those that {bundle.folder} was built with: what they say of "
            f"{probe!r} is not what the bundle holds; give the file it was built with as "
            "--clip-weights."
        )
    return [text_features(clip, tokenizer, word).numpy() for word in words]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipsam words", description="Add product words to a bundle; see docs/adapt.md."
    )
    parser.add_argument("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    parser.add_argument("words", nargs="+", metavar="WORD", help='a word or phrase: "gear wheel"')
    parser.add_argument(
        "--clip-weights",
        type=Path,
        metavar="FILE",
        help="the CLIP the bundle was built with; default: beside the bundle, as for `export`",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="a new bundle (default: BUNDLE itself)"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
