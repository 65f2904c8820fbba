"""The `clipsam` command.

Exit codes: 0 everything asked for was done (whatever the verdicts); 1 it could not be done, or
some images could not be inspected (each is named on stderr and in results.jsonl); 2 wrong usage;
130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipsam.runtime.backends.base import PRECISIONS, PROVIDERS
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.core.errors import ClipSAMError, MissingBackendError
from clipsam.runtime.folder import Counts, find_jobs, inspect_files
from clipsam.runtime.pipeline import ClipSAM
from clipsam.runtime.stages.fusion import NORMS

EPILOG = __doc__.split("\n\n", 1)[1] if __doc__ else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know the letters of a path
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in ("evaluate", "dataset"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads has seen enough, as in `clipsam info BUNDLE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to flush
        return 1
    except ClipSAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = "; --resume goes on from here" if args.command == "inspect" else ""
        print(f"interrupted{hint}.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clipsam",
        description="Zero-shot anomaly segmentation: find defects without defect samples.",
        epilog=EPILOG,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    inspect = commands.add_parser(
        "inspect",
        help="inspect images",
        description="Inspect images; for every image, under its relative path: NAME.overlay.png, "
        "NAME.mask.png (0/255), NAME.score.tiff (float32), and a line in results.jsonl.",
        epilog=EPILOG,
    )
    inspect.add_argument("bundle", type=Path, help="folder of a bundle, e.g. bundles/tiny")
    inspect.add_argument("images", type=Path, nargs="+", help="image files or folders")
    inspect.add_argument("--category", default="object", help='what the part is, e.g. "metal nut"')
    inspect.add_argument("--output", type=Path, required=True, help="folder for the results")
    inspect.add_argument(
        "--provider",
        choices=tuple(PROVIDERS),
        default="cpu",
        help="what runs the graphs: onnxruntime on the CPU (default) or by CUDA, or TensorRT",
    )
    inspect.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the graphs (default: the provider's fastest that the bundle has; int8 only if "
        "asked for)",
    )
    inspect.add_argument("--threads", type=_positive(int), help="CPU threads (default: all cores)")
    inspect.add_argument(
        "--norm", choices=NORMS, help="scale of the score map (default: the bundle's, fixed)"
    )
    inspect.add_argument(
        "--deadline-ms",
        type=_positive(float),
        help="answer with the rough map when SAM would take longer than this in all",
    )
    inspect.add_argument(
        "--resume",
        action="store_true",
        help="skip images that results.jsonl already has, unchanged and with the same options",
    )
    inspect.set_defaults(run=_inspect)

    info = commands.add_parser("info", help="print what a bundle is")
    info.add_argument("bundle", type=Path)
    info.set_defaults(run=_info)

    # Its arguments are the research package's own; `main` hands them on unread.
    evaluate = commands.add_parser(
        "evaluate", add_help=False, help="measure a bundle on a data set (needs clipsam[research])"
    )
    evaluate.set_defaults(run=_evaluate)
    dataset = commands.add_parser(
        "dataset",
        add_help=False,
        help="`dataset check ROOT`: count and check a data set (needs clipsam[research])",
    )
    dataset.set_defaults(run=_dataset)
    return parser


def _inspect(args: argparse.Namespace) -> int:
    jobs = find_jobs(args.images)
    with ClipSAM.open(args.bundle, args.provider, args.threads, args.precision) as model:
        if args.deadline_ms is not None:
            model.warm_up()
        counts = inspect_files(
            model,
            jobs,
            args.output,
            category=args.category,
            norm=args.norm,
            deadline_ms=args.deadline_ms,
            resume=args.resume,
            progress=_progress(),
        )
    print(
        f"{counts.good} good, {counts.anomalous} anomalous"
        + (f", {counts.failed} could not be inspected" if counts.failed else "")
        + (f", {counts.skipped} done before" if counts.skipped else "")
        + f"; results in {args.output}"
    )
    return 1 if counts.failed else 0


def _progress() -> Callable[[int, int, Counts], None]:
    """A line on stderr that counts and estimates; quiet when nobody watches or all is one image.

    The box has no tqdm: the runtime depends on NumPy and OpenCV alone.
    """
    start = time.monotonic()

    def show(done: int, total: int, counts: Counts) -> None:
        if total < 2 or not sys.stderr.isatty():
            return
        left = (time.monotonic() - start) / done * (total - done)
        line = f"\r{done}/{total}  {counts.anomalous} anomalous  {left:.0f} s left "
        print(line, end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show


def _info(args: argparse.Namespace) -> int:
    bundle = Bundle.open(args.bundle)
    manifest = bundle.manifest
    size = sum((bundle.folder / name).stat().st_size for name in manifest.files)
    print(f"{manifest.name}  (bundle {bundle.id}, schema {manifest.schema}, {size / 1e6:.1f} MB)")
    print(f"CLIP sees {manifest.clip_image_size} px, SAM {manifest.sam_image_size} px")
    for name, graph in manifest.graphs.items():
        inputs, outputs = (", ".join(map(str, side)) for side in (graph.inputs, graph.outputs))
        print(f"  {name:12} {inputs}  ->  {outputs}")
    for title, options in (("prompts", manifest.prompts), ("decision", manifest.decision)):
        print(f"{title}: {', '.join(f'{k} {v}' for k, v in vars(options).items())}")
    print(f"normalisation: {manifest.fusion.norm}")
    for title, facts in (("provenance", manifest.provenance), ("parity", manifest.parity)):
        print(f"{title}:")
        for line in _lines(facts):
            print(f"  {line}")
    print(f"{len(manifest.categories)} categories: {', '.join(manifest.categories)}")
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


def _evaluate(args: argparse.Namespace) -> int:
    try:
        from clipsam.research.evaluate import main as evaluate
    except ImportError as error:
        raise MissingBackendError(
            f"`clipsam evaluate` needs {error.name}: pip install 'clipsam[research]'."
        ) from error
    code: int = evaluate(args.rest)
    return code


def _dataset(args: argparse.Namespace) -> int:
    try:
        from clipsam.research.dataset_check import main as dataset
    except ImportError as error:
        raise MissingBackendError(
            f"`clipsam dataset` needs {error.name}: pip install 'clipsam[research]'."
        ) from error
    code: int = dataset(args.rest)
    return code


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:  # nan, too
            raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
        return value

    parse.__name__ = kind.__name__
    return parse


if __name__ == "__main__":
    raise SystemExit(main())
