"""`clipsam diagnose`: which layer makes an engine disagree with float32, and what it was given.

    clipsam diagnose BUNDLE sam_encoder --precision fp16             # TensorRT, on its box
    clipsam diagnose BUNDLE sam_encoder --precision fp16 --provider cpu

All layers are marked as outputs; the same layers in float32, by ONNX Runtime on the CPU, are what
they are compared with, in the order in which they run, by the gate's tolerance. `--provider cpu`
runs the graph with every rounding of its precision written out: if the same layer shows, the
precision is at fault; if nothing does, TensorRT is. Needs polygraphy, onnx and onnxruntime, and for
TensorRT its box. Changes nothing in the bundle. Exit code: 0 diagnosed, 1 it could not be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipsam.export.parity.golden import Case, read_golden
from clipsam.export.parity.half_emulation import emulate
from clipsam.export.parity.profiles import axis_sizes, graph_profiles
from clipsam.export.parity.tensors import fault
from clipsam.export.precisions.recipes import RECIPES, TOLERANCES
from clipsam.export.trt.layers import Finding, Layer, first_diverging, on_cpu
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.trt.library import import_tensorrt
from clipsam.runtime.backends.trt.sidecar import Profile
from clipsam.runtime.bundle import GRAPHS, Bundle
from clipsam.runtime.commands.parser import command_parser, whole_number
from clipsam.runtime.core.errors import ClipSAMError, ExportError
from clipsam.runtime.core.files import DATA_SUFFIX, write_bytes

PROVIDERS = ("tensorrt", "cpu")
_LARGEST = {"fp16": 65504.0}  # finite numbers; bf16's end where float32's do
_SMALLEST = {"fp16": 6e-8}


def diagnose(
    folder: Path,
    graph: str,
    precision: str,
    provider: str = "tensorrt",
    case: str | None = None,
    at_once: int = 100,
    say: Callable[[str], object] = lambda text: None,
) -> tuple[Case, Finding]:
    """Find the first diverging layer of one graph of the bundle in `folder`.

    `case` names the recorded input (None: the first). Raises BundleError, ExportError, or
    MissingBackendError without TensorRT.
    """
    bundle = Bundle.open(folder)
    entry = bundle.graph_entry(graph, precision)
    precision = entry.precision
    if provider == "cpu" and not RECIPES[precision].emulated:
        raise ExportError(
            f"{precision} computes on a CPU what its graph says: use --provider tensorrt, or "
            "another --precision."
        )
    asked = _case(read_golden(folder).cases_for(graph, precision), graph, case)
    profiles = graph_profiles(entry, axis_sizes(bundle.manifest))
    with tempfile.TemporaryDirectory(prefix="clipsam-diagnose-") as temporary:
        path = _linked(bundle.graph_path(graph, precision), Path(temporary))
        wide, rounded = path.with_name("wide.onnx"), path.with_name("rounded.onnx")
        emulate(path, wide, rounding=False)
        suspect = (path, _on_tensorrt(profiles, tf32=precision == "tf32"))
        if provider == "cpu":
            emulate(path, rounded)
            suspect = (rounded, on_cpu)
        label = graph, asked.name, precision
        return asked, first_diverging(
            path, (wide, on_cpu), suspect, asked.feeds, label, at_once, say
        )


def describe(finding: Finding, graph: str, precision: str, case: str, provider: str) -> str:
    """What was found, for people."""
    by = "TensorRT" if provider == "tensorrt" else "ONNX Runtime with every rounding written out"
    lines = [f"{graph} in {precision} on '{case}', by {by}, against the same layers in float32:"]
    layer = finding.first
    if layer is None:
        lines.append(f"None of its {finding.layers} layers is out of tolerance.")
        if provider == "tensorrt":
            lines.append(
                "Marked layers are not fused: if the gate refuses the engine all the same, a fused "
                "kernel is at fault. Try another --optimisation-level or TensorRT version."
            )
        else:
            lines.append("So the precision is not at fault; see what --provider tensorrt says.")
    else:
        lines += _of_layer(layer, finding)
        lines.append(_cause(layer, precision))
    lines.append(f"What is allowed of {precision}: {TOLERANCES[precision].origin()}")
    return "\n".join(lines)


def _of_layer(layer: Layer, finding: Finding) -> list[str]:
    return [
        f"first diverging layer  {layer.node} ({layer.operator}), its output {layer.tensor} "
        f"{fault(layer.check)}",
        f"  in float32           {layer.expected}",
        f"  here                 {layer.found}",
        *(f"  given                {name}: {values}" for name, values in layer.inputs.items()),
        f"last one that agrees   {finding.before or 'none: it is the first'}",
    ]


def _cause(layer: Layer, precision: str) -> str:
    """What the ranges say."""
    largest, smallest = _LARGEST.get(precision), _SMALLEST.get(precision)
    if largest and layer.expected.largest > largest:
        return (
            f"{precision} ends at {largest:.0f} and the layer's values do not: it overflows. Keep "
            "it in float32, or use bf16 or fp32."
        )
    if smallest and 0 < layer.expected.largest < smallest:
        return f"The layer's values are too small for {precision}: use bf16 or fp32."
    if layer.found.not_finite > layer.expected.not_finite:
        return "Values that fit are not numbers here: what computes this layer is at fault."
    return "The layer's values fit its precision: it is rounding, or what computes the layer."


def _case(cases: Sequence[Case], graph: str, name: str | None) -> Case:
    names = [case.name for case in cases]
    if not cases:
        raise ExportError(f"The bundle recorded nothing of {graph}: build the bundle again.")
    if name is not None and name not in names:
        listed = "', '".join(names)
        raise ExportError(f"The bundle recorded no '{name}' of {graph}: use one of '{listed}'.")
    return cases[0 if name is None else names.index(name)]


def _linked(path: Path, folder: Path) -> Path:
    """The graph in a folder of ours, since a bundle may be read-only. No symbolic links: readers of
    ONNX refuse weights that lie in another folder."""
    data = path.with_name(path.name + DATA_SUFFIX)
    for source in (path, data) if data.exists() else (path,):
        try:
            os.link(source, folder / source.name)
        except OSError:  # another disk, or another owner
            shutil.copyfile(source, folder / source.name)
    return folder / path.name


def _on_tensorrt(profiles: Mapping[str, Profile], *, tf32: bool) -> Callable[[Path], Any]:
    def runner(path: Path) -> Any:
        import_tensorrt()  # says what to install
        from polygraphy.backend.trt import (
            CreateConfig,
            EngineFromNetwork,
            NetworkFromOnnxPath,
            SetDecomposableAttentions,
            TrtRunner,
        )
        from polygraphy.backend.trt import Profile as Shapes

        shapes = Shapes()
        for name, sizes in profiles.items():
            shapes.add(name, sizes.min, sizes.opt, sizes.max)
        network = NetworkFromOnnxPath(str(path), strongly_typed=True)
        network = SetDecomposableAttentions(network)  # as the engine was built
        config = CreateConfig(profiles=[shapes] if profiles else None, tf32=tf32)
        return TrtRunner(EngineFromNetwork(network, config))

    return runner


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        case, finding = diagnose(
            options.bundle, options.graph, options.precision, options.provider, options.case,
            options.at_once, lambda text: print(text, file=sys.stderr, flush=True),
        )  # fmt: skip
        if options.json is not None:
            write_bytes(options.json, (json.dumps(asdict(finding), indent=1) + "\n").encode())
    except ClipSAMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(finding, options.graph, options.precision, case.name, options.provider))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("clipsam diagnose", __doc__)
    add = parser.add_argument
    add("bundle", type=Path)
    add("graph", choices=GRAPHS)
    add("--precision", choices=PRECISIONS, required=True)
    add("--provider", choices=PROVIDERS, default="tensorrt", help="default: tensorrt")
    add("--case", metavar="NAME", help="the recorded input, as the gate names it (default: first)")
    add(
        "--at-once",
        type=whole_number(2),  # the first and the last of a range
        default=100,
        metavar="N",
        help="layers marked in one run (default: 100); fewer take less memory and more runs",
    )
    add("--json", type=Path, metavar="FILE", help="write the finding here as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
