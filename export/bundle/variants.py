"""One graph in one precision: made as its recipe says, then held against PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipsam.export.bundle.progress import counted
from clipsam.export.graphs.onnx_export import tensor_specs
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.parity.onnx_vs_torch import (
    DisagreementError,
    GoldenCase,
    check_graph,
)
from clipsam.export.parity.tensors import GraphCheck
from clipsam.export.precisions.recipes import RECIPES, GraphRefusedError
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.bundle import FLOAT32
from clipsam.runtime.core.errors import ExportError
from clipsam.runtime.core.files import DATA_SUFFIX


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
        recipe = RECIPES[self.precision]
        if recipe.base is not None and (self.refused or self.graph not in recipe.graphs):
            return recipe.base
        return self.precision

    @property
    def stem(self) -> str:
        """The file's name without `.onnx`."""
        return self.graph if self.own == FLOAT32 else f"{self.graph}.{self.own}"


def complete(precisions: Sequence[str]) -> tuple[str, ...]:
    """The precisions asked for with those they need, in the order they are built; without those
    that have no graphs of their own."""
    wanted = {FLOAT32, *precisions, *(RECIPES[precision].base for precision in precisions)}
    return tuple(name for name, p in PRECISIONS.items() if name in wanted and p.graphs is None)


def build_variant(
    source: GraphSource, precision: str, folder: Path, opset: int, threads: int | None, bar: Any
) -> list[GraphCheck]:
    """Write the graph of `source` in `precision` into `folder`, and check it.

    The graph must be there already in the precision it is made from. Steps `bar` once for the
    export and once for every check. Raises ExportError; GraphRefusedError, leaving no file, where
    another precision may stand in for a graph that does not pass.
    """
    recipe = RECIPES[precision]
    path = folder / f"{Variant(source.name, precision).stem}.onnx"
    cases = _cases(source, precision)
    reason = ""
    try:
        for _ in recipe.load().make(source, precision, path, max(opset, recipe.opset), threads):
            gc.collect()
            _check_tensors(source.name, precision, folder, path)
            shown = cases if recipe.optional else counted(cases, bar)
            try:
                checks = check_graph(source.name, path, shown, precision, threads)
            except DisagreementError as error:
                if not recipe.optional:
                    raise
                reason = error.reason
                continue
            if recipe.native:
                native = [replace(cases[0], name=f"{cases[0].name}, as onnxruntime runs it")]
                checks += check_graph(
                    source.name, path, counted(native, bar), precision, threads, emulated=False
                )
            bar.update(1 + len(cases) if recipe.optional else 1)
            return checks
    except GraphRefusedError as error:
        reason = reason or str(error)
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}{DATA_SUFFIX}").unlink(missing_ok=True)
    raise GraphRefusedError(reason)


def steps(source: GraphSource, precision: str) -> int:
    """How often `build_variant` steps its bar."""
    images = len(source.images.held_out) if source.images is not None else 0
    recipe = RECIPES[precision]
    standard = 0 if recipe.checked_on == "own" else len(source.cases)
    own = 0 if recipe.checked_on == "standard" or source.name not in recipe.graphs else images
    return 1 + standard + own + recipe.native


def _cases(source: GraphSource, precision: str) -> Sequence[GoldenCase]:
    checked_on = RECIPES[precision].checked_on
    standard = [] if checked_on == "own" else source.golden
    return [*standard, *([] if checked_on == "standard" else source.golden_images)]


def _check_tensors(graph: str, precision: str, folder: Path, path: Path) -> None:
    """Raise ExportError unless the graph has the inputs and outputs of the one in float32."""
    if tensor_specs(path) != tensor_specs(folder / f"{graph}.onnx"):
        raise ExportError(
            f"The graph {graph} came out in {precision} with other inputs or outputs than in "
            f"{FLOAT32}: use the library versions of the constraints file."
        )
