"""One graph in one precision: exported, then held against PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipsam.export.bundle.progress import counted
from clipsam.export.graphs.onnx_export import (
    ATTENTION_OPSET,
    BF16_OPSET,
    DATA_SUFFIX,
    export_graph,
    tensor_specs,
)
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.parity.onnx_vs_torch import DisagreementError, GraphCheck, Recorded, check_graph
from clipsam.export.quantization.dynamic_int8 import DynamicQuantiser, GraphRefusedError
from clipsam.export.quantization.half import DTYPES, HalfPrecision
from clipsam.export.quantization.static_int8 import quantise
from clipsam.runtime.backends.base import PRECISIONS
from clipsam.runtime.bundle import FLOAT32, GRAPHS
from clipsam.runtime.core.errors import ExportError

INT8 = "int8"
INT8_BASE = "fp16"  # what of an int8 graph is not int8; and the whole of its decoder
INT8_DYNAMIC = "int8-dynamic"
QUANTISED = ("clip_umci", "sam_encoder")  # a few tokens attending to an image gain nothing
# What stands in where a graph of a quantised precision is not there.
STANDS_IN = {INT8: INT8_BASE, INT8_DYNAMIC: FLOAT32}
# Of the emulated precisions, those that onnxruntime's CPU provider runs as well.
RUN_BY_ONNXRUNTIME = ("fp16", "int8")


@dataclass(frozen=True)
class Variant:
    """A graph in a precision, and the precision whose file that is.

    Attributes:
      refused: whether the graph was tried in this precision and did not pass.
    """

    graph: str
    precision: str
    refused: bool = False

    @property
    def own(self) -> str:
        """The precision of the file: another's for a decoder in int8, and for what was refused."""
        stands_in = STANDS_IN.get(self.precision, self.precision)
        return stands_in if self.refused or self.graph not in QUANTISED else self.precision

    @property
    def stem(self) -> str:
        """The file's name without `.onnx`."""
        return self.graph if self.own == FLOAT32 else f"{self.graph}.{self.own}"


def complete(precisions: Sequence[str]) -> tuple[str, ...]:
    """The precisions asked for with those they need, in the order they are built."""
    wanted = {FLOAT32, *precisions, *([INT8_BASE] if INT8 in precisions else [])}
    return tuple(precision for precision in PRECISIONS if precision in wanted)


def build_variant(
    source: GraphSource, precision: str, folder: Path, opset: int, threads: int | None, bar: Any
) -> list[GraphCheck]:
    """Write the graph of `source` in `precision` into `folder`, and check it.

    For int8 the graph must be there in `INT8_BASE` already, for int8-dynamic in float32. Steps
    `bar` once for the export and once for every check. Raises ExportError; GraphRefusedError where
    float32 may stand in for a graph that does not stand int8-dynamic.
    """
    variant = Variant(source.name, precision)
    path = folder / f"{variant.stem}.onnx"
    if precision == INT8_DYNAMIC:
        return _build_dynamic(source, path, threads, bar)
    cases: Sequence[Recorded] = source.recorded
    if precision == INT8:
        base = folder / f"{Variant(source.name, INT8_BASE).stem}.onnx"
        quantise(base, path, source.calibration, INT8_BASE, threads)
        cases = source.recorded_images
    else:
        module = source.module
        if precision in DTYPES:
            module = HalfPrecision(module, precision, fused_attention=opset >= ATTENTION_OPSET)
        opset = max(opset, BF16_OPSET) if precision == "bf16" else opset
        export_graph(module, source.example, source.axes, GRAPHS[source.name][1], path, opset)
        del module
    gc.collect()
    bar.update()
    if precision != FLOAT32 and tensor_specs(path) != tensor_specs(folder / f"{source.name}.onnx"):
        raise ExportError(
            f"The graph {source.name} came out in {precision} with other inputs or outputs than in "
            f"{FLOAT32}: use the library versions of the constraints file."
        )
    checks = check_graph(source.name, path, counted(cases, bar), precision, threads)
    if precision in RUN_BY_ONNXRUNTIME:
        native = [replace(cases[0], name=f"{cases[0].name}, as onnxruntime runs it")]
        checks += check_graph(
            source.name, path, counted(native, bar), precision, threads, emulated=False
        )
    return checks


def _build_dynamic(
    source: GraphSource, path: Path, threads: int | None, bar: Any
) -> list[GraphCheck]:
    """int8-dynamic with as many int8 MatMuls as the graph can stand.

    Errors of MatMuls that are small alone add up: when the graph fails, only those that are off by
    less stay int8. Raises GraphRefusedError, and leaves no file, when too few are left.
    """
    quantiser = DynamicQuantiser(path.with_name(f"{source.name}.onnx"), source.trial(), threads)
    bar.update()
    cases = [*source.recorded, *source.recorded_images]
    reason = ""
    for limit in quantiser.limits():
        try:
            quantiser.write(path, limit)
            checks = check_graph(source.name, path, cases, INT8_DYNAMIC, threads)
        except GraphRefusedError as error:
            reason = reason or str(error)
            break
        except DisagreementError as error:
            reason = error.reason
        else:
            for _ in cases:
                bar.update()
            return checks
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}{DATA_SUFFIX}").unlink(missing_ok=True)
    raise GraphRefusedError(reason)


def steps(source: GraphSource, precision: str) -> int:
    """How often `build_variant` steps its bar."""
    images = len(source.images.held_out) if source.images is not None else 0
    checks = images if precision == INT8 else len(source.cases)
    if precision == INT8_DYNAMIC and source.name in QUANTISED:
        checks += images
    return 1 + checks + (precision in RUN_BY_ONNXRUNTIME)
