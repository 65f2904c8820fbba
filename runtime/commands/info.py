"""`clipsam info`: print what a bundle is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipsam.runtime.bundle import PREPARE, Bundle
from clipsam.runtime.commands.parser import command_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Raises BundleError."""
    parser = command_parser("clipsam info", __doc__)
    parser.add_argument("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    bundle = Bundle.open(parser.parse_args(argv).bundle)
    manifest = bundle.manifest
    size = sum((bundle.folder / name).stat().st_size for name in manifest.files)
    print(f"{manifest.name}  (bundle {bundle.id}, schema {manifest.schema}, {size / 1e6:.1f} MB)")
    print(f"CLIP sees {manifest.clip_image_size} px, SAM {manifest.sam_image_size} px")
    for name, graph in manifest.graphs.items():
        inputs, outputs = (", ".join(map(str, side)) for side in (graph.inputs, graph.outputs))
        print(f"  {name:12} {inputs}  ->  {outputs}")
    if manifest.prepare is not None:  # its other inputs are a resize's matrices
        outputs = ", ".join(map(str, manifest.prepare.outputs))
        print(f"  {PREPARE:12} {manifest.prepare.input('image')}  ->  {outputs}")
    for title, options in (("prompts", manifest.prompts), ("decision", manifest.decision)):
        print(f"{title}: {', '.join(f'{k} {v}' for k, v in vars(options).items())}")
    print(f"normalisation: {manifest.fusion.norm}")
    for title, facts in (("provenance", manifest.provenance), ("parity", manifest.parity)):
        print(f"{title}:")
        for line in _lines(facts):
            print(f"  {line}")
    print(f"{len(manifest.categories)} categories: {', '.join(manifest.categories)}")
    words = bundle.namer.words if bundle.namer else ()
    print(f"{len(words)} words for defects: {', '.join(words)}" if words else "no defect is named")
    return 0


def _lines(facts: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line per fact, nested ones under their path; keys and lists are for machines."""
    for key, value in facts.items():
        if key == "graph_keys" or isinstance(value, list):
            continue
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            yield from _lines(value, f"{prefix}{key}, ")
        elif isinstance(value, dict):
            known = (f"{k} {_short(v)}" for k, v in value.items() if not isinstance(v, list))
            if text := ", ".join(known):
                yield f"{prefix}{key}: {text}"
        else:
            yield f"{prefix}{key}: {_short(value)}"


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
