"""Teach a bundle further words: text features beside those it has, no graph is built again.

    clipsam words bundles/tiny "gear wheel" "brake disc"
    clipsam words bundles/tiny --defects "sink mark" "flow line"

The new features come from the text tower the bundle was built with, which is checked: what it says
of a word the bundle knows must be what the bundle holds. The bundle is replaced whole or not at
all, and has another id afterwards. Needs PyTorch, so it is for the machine that builds bundles.
Exit code: 0 done (or nothing to do), 1 an error, 2 wrong usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipsam.export.bundle.staging import keep_engines, link_or_copy, staged_bundle
from clipsam.export.graphs.checkpoints import Checkpoints, built_from, seed_of
from clipsam.research.cli.run import run_command
from clipsam.research.models.naming import word_space
from clipsam.research.models.presets import PRESETS, Preset, get_tokenizer
from clipsam.research.models.prompt_ensemble import text_features
from clipsam.runtime.bundle import (
    MANIFEST,
    NAMING,
    REBUILD,
    TEXT_FEATURES,
    Bundle,
    write_manifest,
    write_naming,
    write_text_features,
)
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.errors import BundleError, OptionError, WeightsError
from clipsam.runtime.core.files import sha256
from clipsam.runtime.naming_file import MOST_WORDS
from clipsam.runtime.options import clean_words
from clipsam.runtime.stages.naming import UNKNOWN

PRODUCT = "a product's word"
SAME = 1e-3
"""Largest difference of a text feature (their length is 1) between two machines' arithmetic."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the module; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args), "the bundle is as it was")


def _run(args: argparse.Namespace) -> int:
    known = Bundle.open(args.bundle)
    words = clean_words(args.words, "a word for defects" if args.defects else PRODUCT)
    here = defect_words(known) if args.defects else known.manifest.categories
    new = [word for word in words if word not in here]
    output = args.output or args.bundle
    if not new and output.resolve() == args.bundle.resolve():
        print(f"{args.bundle} knows every one of these words: nothing was changed.")
        return 0
    checkpoints = Checkpoints.beside(args.bundle, args.clip_weights)
    if args.naming_weights is not None:
        checkpoints = replace(checkpoints, naming=args.naming_weights)
    add = add_defects if args.defects else add_words
    bundle = add(known, new, checkpoints, output)
    print(f"{output} is now bundle {bundle.id} and knows {', '.join(map(repr, words))}. Use it:")
    flag = "--look-for" if args.defects else "--category"
    print(f'  clipsam inspect {output} IMAGE {flag} "{words[0]}" --output out')
    return 0


def defect_words(bundle: Bundle) -> tuple[str, ...]:
    """The words for defects, and "unknown". Raises BundleError where the bundle names nothing."""
    if bundle.namer is None:
        raise BundleError(
            f"The bundle in {bundle.folder} names no defects, so it takes no words for them: "
            f"{REBUILD}."
        )
    return (*bundle.namer.words, UNKNOWN)


def add_words(
    bundle: Bundle, words: Sequence[str], checkpoints: Checkpoints, output: Path
) -> Bundle:
    """Write to `output` (the bundle's own folder, too) the bundle with text features of `words`.

    Raises WeightsError where the weights are not those of the bundle's text tower, OutputError
    where it cannot be written; then `output` is as it was.
    """
    features = _features(bundle, words, checkpoints)
    categories = (*bundle.manifest.categories, *words)
    table = np.stack([*map(bundle.text, bundle.manifest.categories), *features])
    return _with_file(
        bundle,
        output,
        TEXT_FEATURES,
        lambda path: write_text_features(path, categories, table),
        categories,
    )


def add_defects(
    bundle: Bundle, words: Sequence[str], checkpoints: Checkpoints, output: Path
) -> Bundle:
    """As `add_words`, with words for defects."""
    namer = bundle.namer
    assert namer is not None
    if len(namer.words) + len(words) > MOST_WORDS:
        raise OptionError(f"A bundle takes {MOST_WORDS} words for defects: add fewer.")
    preset, clip = _clip(bundle, checkpoints)
    # Whether the weights are the bundle's is said below, of an adapted one, too.
    space = word_space(preset, clip, get_tokenizer(), checkpoints.naming, adapted=True)
    probe = namer.words[0]
    if space is None or np.abs(space.features([probe])[0] - namer.features[0]).max() > SAME:
        raise _other_weights(bundle, probe)
    features = namer.features
    if words:
        features = np.concatenate([features, space.features(list(words))])
    every = (*namer.words, *words)
    return _with_file(
        bundle, output, NAMING, lambda path: write_naming(path, every, features, namer.head)
    )


def _with_file(
    bundle: Bundle,
    output: Path,
    name: str,
    write: Callable[[Path], None],
    categories: tuple[str, ...] | None = None,
) -> Bundle:
    """The bundle with another file of this name, and these categories."""
    manifest = bundle.manifest
    with staged_bundle(output) as folder:
        for other in manifest.files:
            if other != name:
                link_or_copy(bundle.folder / other, folder / other)
        keep_engines(bundle.folder, folder)  # words are an input of theirs
        write(folder / name)
        files = {**manifest.files, name: sha256(folder / name)}
        write_manifest(
            folder, replace(manifest, categories=categories or manifest.categories, files=files)
        )
        Bundle.open(folder)  # as its users will
    return Bundle.open(output, verify=False)


def _features(
    bundle: Bundle, words: Sequence[str], checkpoints: Checkpoints
) -> list[NDArray[np.float32]]:
    """L [C_t,2] of each word, from a text tower that is the bundle's."""
    _, clip = _clip(bundle, checkpoints)
    tokenizer = get_tokenizer()
    probe = bundle.manifest.categories[0]
    here = text_features(clip, tokenizer, probe).numpy()
    if here.shape != bundle.text(probe).shape or np.abs(here - bundle.text(probe)).max() > SAME:
        raise _other_weights(bundle, probe)
    return [text_features(clip, tokenizer, word).numpy() for word in words]


def _clip(bundle: Bundle, checkpoints: Checkpoints) -> tuple[Preset, Any]:
    """The preset that the bundle was built from, and CLIP with these weights."""
    name, digests = built_from(bundle.manifest.provenance)
    if name not in PRESETS:
        raise WeightsError(
            f"{MANIFEST} of {bundle.folder} does not say which preset the bundle was built from "
            f"(it says {name!r}): build the bundle again with --categories."
        )
    noise = seed_of(digests.get("clip", ""))
    clip, _ = replace(checkpoints, random_seed=noise).load_clip(PRESETS[name])
    return PRESETS[name], clip


def _other_weights(bundle: Bundle, probe: str) -> WeightsError:
    return WeightsError(
        f"The CLIP weights are not those that {bundle.folder} was built with: what they say of "
        f"{probe!r} is not what the bundle holds; give the file it was built with as "
        "--clip-weights."
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam words", __doc__)
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
    parser.add_argument(
        "--defects", action="store_true", help="the words are for defects, not for products"
    )
    parser.add_argument(
        "--naming-weights", type=Path, metavar="FILE", help="of the bundle, as for `export`"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
