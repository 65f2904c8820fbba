"""`clipsam audit`: what of a bundle's graphs a GPU's engines would not run, without a GPU.

    clipsam audit bundles/tiny                # every graph in every precision
    clipsam audit one.onnx another.onnx

For every graph: its opset and operators, what TensorRT's parser does not document, and what ONNX
Runtime would run on the CPU with its CUDA provider. Exit code: 0 nothing found that computes, 1
something, or a file that cannot be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from clipsam.export.graphs.placement import on_cpu, opset_of
from clipsam.export.graphs.tensorrt_operators import unsupported
from clipsam.runtime.backends.ort.placement import computes
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import can_run
from clipsam.runtime.bundle import Bundle
from clipsam.runtime.commands.parser import command_parser
from clipsam.runtime.core.errors import ExportError


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. Raises BundleError or ExportError."""
    parser = command_parser("clipsam audit", __doc__)
    parser.add_argument(
        "path", type=Path, nargs="+", help="folder of a bundle, or ONNX files (taken as fp32)"
    )
    found = False
    for path in parser.parse_args(argv).path:
        for file, precision in _graphs(path):
            found |= _report(file, precision)
    return int(found)


def _graphs(path: Path) -> Iterator[tuple[Path, str]]:
    """The ONNX files to audit with what they compute in, each once."""
    if path.suffix == ".onnx":
        yield path, "fp32"
        return
    bundle = Bundle.open(path)
    for entry in dict.fromkeys(bundle.manifest.every_graph()):
        yield bundle.folder / entry.file, entry.precision


def _report(path: Path, precision: str) -> bool:
    """Print what is to be said of one graph; whether there is something to mend."""
    try:
        model = onnx.load(path, load_external_data=False)
        opset = opset_of(model)
    except Exception as error:  # protobuf's own, too
        raise ExportError(
            f"{path} is not an ONNX graph ({error}): give one, or a bundle."
        ) from error
    counts = Counter(node.op_type for node in model.graph.node)
    print(f"{path.name}: opset {opset}, {sum(counts.values())} nodes")
    print("  operators: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))
    bad = False
    for provider in ("tensorrt", "cuda"):
        if not can_run(provider, precision):
            made = " and ".join(PRECISIONS[precision].made_for) or "TensorRT"
            print(f"  {provider}: does not run {precision}, which is for {made}")
        elif provider == "tensorrt":
            problems = unsupported(model)
            bad |= bool(problems)
            print(f"  tensorrt: {'; '.join(problems) or 'documented, all of it'}")
        else:
            moved = on_cpu(model)
            bad |= any(computes(node.operator) for node in moved)
            kinds = Counter(node.operator for node in moved)
            named = ", ".join(f"{name} {n}" for name, n in sorted(kinds.items()))
            print(f"  cuda: {f'{len(moved)} nodes on the CPU ({named})' if moved else 'all of it'}")
    return bad
