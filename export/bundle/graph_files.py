"""The graph files of a bundle that is being built: exported, taken over, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipsam.export.bundle.progress import stage
from clipsam.export.bundle.provenance import content_key
from clipsam.export.bundle.reuse import PreviousBundle
from clipsam.export.bundle.variants import Variant, build_variant, complete, steps
from clipsam.export.graphs.calibration import CalibrationImages
from clipsam.export.graphs.onnx_export import tensor_specs
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.parity.tensors import GraphCheck
from clipsam.export.precisions.recipes import RECIPES, GraphRefusedError
from clipsam.runtime.bundle import GRAPHS, GraphEntry


class GraphFiles:
    """Every graph in every precision, in the staging folder.

    Attributes:
      precisions: of the graphs, in the order they are built.
      keys: a file's stem, or "text" -> what its content follows from, hashed.
      checks: every comparison with PyTorch.
      unchanged: stems taken over from the bundle before.
      refused: why another precision stands in for a graph.
    """

    def __init__(
        self,
        folder: Path,
        previous: PreviousBundle,
        precisions: Sequence[str],
        opset: int,
        threads: int | None,
        images: CalibrationImages | None,
    ) -> None:
        self.folder, self.previous, self.precisions = folder, previous, complete(precisions)
        self.opset, self.threads, self.images = opset, threads, images
        self.keys: dict[str, str] = {}
        self.checks: list[GraphCheck] = []
        self.unchanged: list[str] = []
        self.refused: dict[Variant, str] = {}

    def add(self, source: GraphSource, precision: str) -> None:
        """Export one graph and hold it against PyTorch, or take it over if nothing changed."""
        variant = self._variant(source.name, precision)
        if variant.own != precision:
            return  # another precision's file
        facts: dict[str, Any] = {**source.facts, "opset": self.opset}
        if RECIPES[precision].checked_on != "standard" and self.images is not None:
            facts["calibration"] = self.images.digest()
        key = self.keys[variant.stem] = content_key(facts, source.name, precision)
        with stage(variant.stem, steps(source, precision)) as bar:
            checks = self.previous.take_over(variant.stem, key, self.folder)
            if checks is not None:
                self.unchanged.append(variant.stem)
                bar.set_postfix_str("unchanged")
                bar.update(bar.total)
            else:
                try:
                    checks = build_variant(
                        source, precision, self.folder, self.opset, self.threads, bar
                    )
                except GraphRefusedError as error:
                    self.refused[Variant(source.name, precision)] = str(error)
        self.checks.extend(checks or [])

    def variants(self) -> dict[str, dict[str, GraphEntry]]:
        """precision -> graph -> entry, without a precision that no graph passed in."""
        return {
            precision: {name: self._entry(self._variant(name, precision)) for name in GRAPHS}
            for precision in self.built()
        }

    def built(self) -> list[str]:
        """The precisions that the bundle has."""
        return [
            precision
            for precision in self.precisions
            if any(Variant(g, precision) not in self.refused for g in RECIPES[precision].graphs)
        ]

    def take_out(self, precision: str, reason: str) -> None:
        """Delete what was written in a precision: other graphs stand in for these after all."""
        for graph in RECIPES[precision].graphs:
            variant = Variant(graph, precision)
            if variant in self.refused:
                continue
            for path in self.folder.glob(f"{variant.stem}.onnx*"):
                path.unlink()
            del self.keys[variant.stem]
            self.refused[variant] = reason
            self.unchanged = [name for name in self.unchanged if name != variant.stem]
        self.checks = [c for c in self.checks if c.precision != precision]

    def _variant(self, graph: str, precision: str) -> Variant:
        return Variant(graph, precision, Variant(graph, precision) in self.refused)

    def _entry(self, variant: Variant) -> GraphEntry:
        file = f"{variant.stem}.onnx"
        inputs, outputs = tensor_specs(self.folder / file)
        return GraphEntry(file, inputs, outputs, variant.own)
