"""Graphs in float32, and those in half precision that are exported like them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clipsam.export.graphs.onnx_export import ATTENTION_OPSET, export_graph
from clipsam.export.graphs.sources import GraphSource
from clipsam.export.quantization.half import DTYPES, HalfPrecision
from clipsam.runtime.manifest import GRAPHS


def make(
    source: GraphSource, precision: str, path: Path, opset: int, threads: int | None
) -> Iterator[None]:
    """Write the graph of `source` in fp32, fp16 or bf16 to `path`; see `Recipe.module`."""
    module = source.module
    if precision in DTYPES:
        module = HalfPrecision(module, precision, fused_attention=opset >= ATTENTION_OPSET)
    export_graph(module, source.example, source.axes, GRAPHS[source.name][1], path, opset)
    del module
    yield
