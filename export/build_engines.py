"""Build a bundle: weights in, a folder that `clipsam inspect` can use out.

    python export/build_engines.py                             # the tiny bundle, into bundles/tiny
    python export/build_engines.py --preset paper \\
        --sam-weights sam_vit_h_4b8939.pth --umci-weights umci.safetensors \\
        --categories "gear wheel" "brake disc"                 # the paper's models
    python export/build_engines.py --precision fp16 int8 --calibration good_parts/
    python export/build_engines.py --precision int8-dynamic    # faster large models on a CPU
    python export/build_engines.py --precision int8-conv       # faster looks of tiny on a CPU
    python export/build_engines.py --engines-only BUNDLE       # on the box: TensorRT engines of it

Every graph is held against PyTorch, and the whole against the plain reference; a bundle that does
not agree is not written. Graphs that did not change since the bundle was built last are taken
over. Engines are held against the golden outputs of the float32 graphs before they are
written; that needs TensorRT, and neither PyTorch nor onnx. Exit code: 0 built, 1 an error (one
sentence on stderr, nothing changed), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: use this clone, installed or not, whatever else is installed
    _root = Path(__file__).resolve().parent.parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _root / "export"]
    _namespace = types.ModuleType("clipsam")
    _namespace.__path__ = [str(_root)]
    sys.modules["clipsam"] = _namespace

from clipsam.research.cli.run import run_command
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.commands.parser import command_parser, number, whole_number
from clipsam.runtime.core.stop import heed_stop_signals

# Written out so that `--help` needs no torch; a test holds them against the real lists.
PRESET_NAMES = ("paper", "vit-b", "mobile", "tiny")
OPSETS = (20, 23)
ATTENTIONS = ("stock", "mask", "mask-free", "blocked")

# What is built unless told: beside fp32 what a GPU runs fastest, for models that are made for one.
DEFAULT_PRECISIONS = dict.fromkeys(PRESET_NAMES, ("fp32", "fp16")) | {"tiny": ("fp32",)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    work = _build if options.engines_only is None else _build_engines
    return run_command(lambda: work(options), "nothing was changed")


def _build(options: argparse.Namespace) -> int:
    try:
        from clipsam.export.bundle.build import BuildOptions, build
        from clipsam.export.graphs.checkpoints import Checkpoints
        from clipsam.export.graphs.sam_attention import usual_attention
        from clipsam.export.parity.onnx_vs_torch import format_table
        from clipsam.export.precisions.recipes import TOLERANCES
        from clipsam.research.models.presets import PRESETS
    except ModuleNotFoundError as error:
        print(
            f"error: building needs {error.name}, which is not installed: "
            "pip install 'clipsam[export]'.",
            file=sys.stderr,
        )
        return 1
    output = options.output or Path("bundles") / options.preset
    precisions = tuple(options.precision or DEFAULT_PRECISIONS[options.preset])
    report = build(
        BuildOptions(
            preset=PRESETS[options.preset],
            output=output,
            checkpoints=Checkpoints(
                options.clip_weights,
                options.sam_weights,
                options.umci_weights,
                options.random_weights,
                options.naming_weights,
            ),
            categories=_categories(options.categories),
            defects=_categories(options.defects),
            precisions=precisions,
            attention=options.attention or usual_attention(precisions),
            calibration=options.calibration,
            opset=options.opset,
            threads=options.threads,
        )
    )
    print("\nEvery graph against PyTorch:")
    print(format_table([vars(check) for check in report.graphs]))
    print("\nThe bundle against the PyTorch reference:")
    print(format_table([vars(check) for check in report.end_to_end]))
    print("\nThe tolerances:")
    for precision in dict.fromkeys(check.precision for check in report.end_to_end):
        print(f"{precision}: {TOLERANCES[precision].origin()}")
    if report.unchanged:
        print(f"\nUnchanged, not exported again: {', '.join(report.unchanged)}.")
    for sentence in report.refused:
        print(f"\n{sentence}")
    if not report.names:
        print(
            "\nThe bundle names no defects, since no naming head was trained on this CLIP: "
            "`clipsam train-naming` makes one, for --naming-weights."
        )
    print(f"\nBuilt {output}. Use it:\n  clipsam inspect {output} IMAGE --output out")
    return 0


def _build_engines(options: argparse.Namespace) -> int:
    from clipsam.export.trt.build import build_engines
    from clipsam.runtime.backends.trt.sidecar import BuildFlags

    folder, gigabytes = options.engines_only, options.workspace_gb
    report = build_engines(
        folder,
        options.precision,
        BuildFlags(
            optimization_level=options.optimisation_level,
            workspace=None if gigabytes is None else int(gigabytes * (1 << 30)),
        ),
        options.fallback,
        lambda text: print(text, file=sys.stderr),
    )
    for what, names in (("Kept", report.kept), ("Built and checked", report.written)):
        if names:
            print(f"{what}: {', '.join(names)}.")
    print(f"Use them:\n  clipsam inspect {folder} IMAGE --provider tensorrt --output out")
    return 0


def _categories(given: Sequence[str]) -> tuple[str, ...]:
    """Words and phrases, one an argument or several between commas."""
    words = [word.strip() for argument in given for word in argument.split(",")]
    return tuple(word for word in words if word)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam export" if __package__ else "build_engines.py", __doc__)
    add = parser.add_argument
    add("--preset", choices=PRESET_NAMES, default="tiny", help="which models (default: tiny)")
    for name, what in (
        ("clip", "OpenAI's CLIP; default: open_clip's cache, or the repository's file for tiny"),
        ("sam", "Meta's sam_vit_*.pth; default for tiny only"),
        ("umci", "umci.safetensors of research/train.py; default for tiny only"),
        ("naming", "naming.safetensors of `clipsam train-naming`; default: the repository's file "
         "for tiny, else CLIP's own projection, untrained"),
    ):  # fmt: skip
        add(f"--{name}-weights", type=Path, metavar="FILE", help=what)
    add(
        "--categories",
        nargs="+",
        default=[],
        metavar="WORD",
        help="product words or phrases added to the default list; also several between commas",
    )
    add(
        "--defects",
        nargs="+",
        default=[],
        metavar="WORD",
        help="words or phrases for defects, beside the default list",
    )
    add(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        help="of the graphs, beside fp32, which is always there (bf16 is for TensorRT only, int8 "
        "brings fp16 along and needs --calibration, int8-dynamic and int8-conv are for CPUs only "
        "and leave a graph that does not pass in fp32; default: fp16, for tiny none); of engines "
        "(tf32: those of the fp32 graphs, rounded as GPUs do), default: the one TensorRT prefers "
        "of those the bundle has",
    )
    add(
        "--attention",
        choices=ATTENTIONS,
        help="how SAM's encoder writes its attention: as published (stock), or in another form of "
        "the same numbers: two that a GPU's engines can fuse, and blocked, lean on a CPU "
        "(default: mask-free with fp16, bf16 or int8, else stock)",
    )
    add(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="images of good parts, from which int8 takes its ranges and on which it is checked; "
        "int8-dynamic and int8-conv are tried and checked on them, too",
    )
    add(
        "--opset",
        type=int,
        choices=OPSETS,
        default=OPSETS[0],
        help="of ONNX (default: 20; bf16 needs 22 and has it)",
    )
    add("--output", type=Path, metavar="FOLDER", help="default: bundles/PRESET")
    add(
        "--random-weights",
        type=int,
        metavar="SEED",
        help="seeded noise for every model without a weights file: for checks only",
    )
    add("--threads", type=whole_number(), metavar="N", help="CPU threads (default: all cores)")
    _engine_options(parser)
    return parser


def _engine_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("TensorRT engines for this machine's GPU").add_argument
    add(
        "--engines-only",
        type=Path,
        metavar="BUNDLE",
        help="build the engines of an existing bundle, and no bundle; valid ones are kept",
    )
    add(
        "--fallback",
        action="store_true",
        help="where an engine does not agree with float32, build the next safer precision",
    )
    add("--workspace-gb", type=number(1e-3, 1e6), metavar="N", help="scratch memory (default: all)")
    add(
        "--optimisation-level",
        type=int,
        choices=range(6),
        default=3,
        help="0 builds fast, 5 looks for the fastest engine (default: 3)",
    )


if __name__ == "__main__":
    heed_stop_signals()
    sys.exit(main())
