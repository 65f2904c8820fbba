"""How each precision is made, checked and judged: one table, for builds and for the box.

Who runs a precision and what is safer is the runtime's half, `runtime/backends/precision.py`. A new
precision is an entry in each and one file that makes its graphs. No torch and no onnx in here, so
that engines are judged by the same figures where neither is.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from clipsam.runtime.core.errors import ExportError

EVERY_GRAPH = ("clip_umci", "sam_encoder", "sam_decoder")
LARGE_GRAPHS = ("clip_umci", "sam_encoder")  # a few tokens attending to an image gain nothing


class GraphRefusedError(ExportError):
    """A graph does not stand this precision; the message is the reason, without a full stop."""


@dataclass(frozen=True)
class Tolerance:
    """What is allowed of one precision.

    Attributes:
      max_rel: largest error of a graph's output, relative to its largest value.
      rms_rel: root mean square error of a graph's output, relative to its root mean square.
      mask_iou: least overlap of SAM's masks with float32's, given the same prompts; see
        `inspection.overlap`.
      scores: largest difference of SAM's scores, which lie near 0..1.
      final_map: largest difference on the 0..1 map, where the masks are the same.
      basis: where these come from, for use after "set from".
      provisional: whether all that was measured were small models, mostly with random weights.
    """

    max_rel: float
    rms_rel: float
    mask_iou: float
    scores: float
    final_map: float
    basis: str
    provisional: bool = True

    def origin(self) -> str:
        """Where the figures come from, as a sentence."""
        note = " Provisional: no full-size model with its trained weights was measured."
        return f"Set from {self.basis}.{note if self.provisional else ''}"


@dataclass(frozen=True)
class Recipe:
    """How graphs of one precision are made and checked.

    Attributes:
      module: that makes them. Its `make(source, precision, path, opset, threads)` writes the graph
        to `path` and yields, once, or once for every attempt, the boldest first; the first that is
        within tolerance is kept. Where it starts from the graph's file in `base`, its
        `read_record(path)` says what became of the layers.
      how: for the parity report: what was run to check them.
      base: the precision whose file a graph is made from, and which serves for graphs that have
        no file in this one; None: exported from PyTorch.
      graphs: those that have a file of their own.
      optional: whether `base` may serve for a graph that does not pass, too.
      checked_on: the standard inputs, those of the user's images, or both.
      emulated: whether the check rounds every result as the graph's types say, since
        onnxruntime's CPU provider does not.
      native: whether that provider must be able to run the graph besides.
      opset: the least of ONNX that has the operators.
    """

    module: str
    how: str
    base: str | None = None
    graphs: tuple[str, ...] = EVERY_GRAPH
    optional: bool = False
    checked_on: Literal["standard", "own", "both"] = "standard"
    emulated: bool = False
    native: bool = False
    opset: int = 0

    def load(self) -> Any:
        """The module; imports torch and onnx."""
        return importlib.import_module(self.module)


_QUANTIZATION = "clipsam.export.quantization"
_EMULATED = "onnxruntime on the CPU in float32, every result rounded as the graph's types say"
RECIPES = {
    "fp32": Recipe(f"{_QUANTIZATION}.floating", "onnxruntime on the CPU"),
    "fp16": Recipe(
        f"{_QUANTIZATION}.floating",
        f"{_EMULATED}; its own fp16 skips roundings",
        emulated=True,
        native=True,
    ),
    "bf16": Recipe(
        f"{_QUANTIZATION}.floating",
        f"{_EMULATED}; it does not run bf16 itself, which is for TensorRT",
        emulated=True,
        opset=22,  # the first in which ONNX allows convolutions of bf16
    ),
    "tf32": Recipe(
        f"{_QUANTIZATION}.floating",
        "not on a CPU: the float32 graphs, whose products a GPU rounds",
        base="fp32",
        graphs=(),
    ),
    "int8": Recipe(
        f"{_QUANTIZATION}.static_int8",
        f"{_EMULATED}; on the user's images only",
        base="fp16",
        graphs=LARGE_GRAPHS,
        checked_on="own",
        emulated=True,
        native=True,
    ),
    "int8-dynamic": Recipe(
        f"{_QUANTIZATION}.dynamic_int8",
        "onnxruntime on the CPU, which is what it is for",
        base="fp32",
        graphs=LARGE_GRAPHS,
        optional=True,
        checked_on="both",
    ),
    "int8-conv": Recipe(
        f"{_QUANTIZATION}.conv_int8",
        "onnxruntime on the CPU, which is what it is for",
        base="fp32",
        graphs=("clip_umci",),
        optional=True,
        checked_on="both",
    ),
}

# Of float32's overlap: a logit that rounds to the other side of zero flips a pixel of an edge, and
# the official upscaling computes its coordinates in float32 (off by 1e-5 of the largest logit;
# OpenCV's by 1e-7). The others leave room above what was measured: depth adds errors, and trained
# weights have outliers. What goes wrong in half precision goes wrong by far more.
# The trained tiny in bf16 has an overlap of 0.983, and 0.916 if the edges of small masks counted.
# A CPU uses int8-dynamic and int8-conv unasked, so their masks must be as near as those of fp16.
TOLERANCES = {
    # max_rel, rms_rel, mask_iou, scores, final_map
    "fp32": Tolerance(
        1e-4, 1e-4, 0.999, 1e-4, 1e-3,
        "sums in another order, 1e-6 to 1e-5 over the 32 blocks of ViT-H; a wrong constant, a "
        "dropped term or half precision shows as 1e-3 or more",
        provisional=False,
    ),
    "fp16": Tolerance(
        3e-2, 1e-2, 0.98, 1e-2, 1e-2,
        "small models with random weights (largest error 0.011, overlap 0.999), with room",
    ),
    "bf16": Tolerance(
        2e-1, 5e-2, 0.95, 5e-2, 5e-2,
        "small models with random weights (largest error 0.047, overlap 0.991; the trained tiny "
        "0.983), with room",
    ),
    "int8-dynamic": Tolerance(
        2e-1, 5e-2, 0.98, 5e-2, 5e-2,
        "bf16's errors and fp16's masks, since a CPU uses it unasked",
    ),
    "int8": Tolerance(
        3e-1, 1e-1, 0.90, 1e-1, 1e-1,
        "small models with random weights (largest error 0.019, overlap 0.994), with room",
    ),
}  # fmt: skip
TOLERANCES["int8-conv"] = replace(
    TOLERANCES["int8-dynamic"], basis="those of int8-dynamic, which a CPU uses unasked as well"
)
TOLERANCES["tf32"] = replace(
    TOLERANCES["fp16"], basis="those of fp16, whose products have as many bits; never measured"
)
