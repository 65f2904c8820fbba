"""Where in a graph two ways to run it part: every layer marked as an output, run by polygraphy.

The graph's file gets the outputs, so both sides have them by the same names. Marking keeps TensorRT
from fusing layers into one kernel: what only a fused kernel gets wrong does not show here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from polygraphy.backend.onnx import modify_outputs
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER

from clipsam.export.parity.half_emulation import HALF_TYPES, tensor_types
from clipsam.export.parity.tensors import GraphCheck, compare
from clipsam.runtime.core.errors import ClipSAMError, ExportError, first_line

Arrays = Mapping[str, NDArray[Any]]
# A graph's file and its outputs in, something of polygraphy's that runs it out.
Side = Callable[[Path], Any]


@dataclass(frozen=True)
class Range:
    """The values of a tensor: smallest and largest finite ones, and how many are not finite."""

    low: float
    high: float
    not_finite: int

    @classmethod
    def of(cls, array: NDArray[Any]) -> Range:
        """Of an array of any shape; one without a finite value has the range 0 to 0."""
        finite = array[np.isfinite(array)].astype(np.float64)
        ends = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        return cls(float(ends[0]), float(ends[1]), int(array.size - finite.size))

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        lost = f", and {self.not_finite} that are not finite" if self.not_finite else ""
        return f"{self.low:.4g} to {self.high:.4g}{lost}"


@dataclass(frozen=True)
class Layer:
    """One layer, and how far its output is off.

    Attributes:
      node, operator, tensor: its name in the graph, what it is, the output that was compared.
      check: the comparison, with the tolerance of the graph's outputs.
      expected, found: of the output, in float32 and on the side in question.
      inputs: of what it was given in float32, by name; without weights.
    """

    node: str
    operator: str
    tensor: str
    check: GraphCheck
    expected: Range
    found: Range
    inputs: Mapping[str, Range]


@dataclass(frozen=True)
class Finding:
    """The first layer out of tolerance (None: all are within) and the last one before it.

    Attributes:
      layers: how many outputs of layers the graph has; passes: how often it was run.
    """

    first: Layer | None
    before: str
    layers: int
    passes: int


def marked(graph: Path) -> list[tuple[onnx.NodeProto, str]]:
    """Every node with an output of floating point, in the order in which they run."""
    model = onnx.load(graph, load_external_data=False)
    types = tensor_types(model)
    return [
        (node, name)
        for node in model.graph.node
        if node.op_type not in ("Constant", "ConstantOfShape")
        for name in node.output
        if types.get(name) in (TensorProto.FLOAT, *HALF_TYPES)
    ]


def first_diverging(
    graph: Path,
    reference: tuple[Path, Side],
    suspect: tuple[Path, Side],
    feeds: Arrays,
    label: tuple[str, str, str],
    at_once: int = 100,
    say: Callable[[str], object] = lambda text: None,
) -> Finding:
    """Run both sides on `feeds` and find the first layer of `graph` whose output is off.

    Args:
      graph: whose layers and order count.
      reference, suspect: a file with the tensors of `graph`, and what runs it.
      label: name of the graph, of the input and the precision, by whose tolerance is judged.
      at_once: outputs marked in one run, at least 2. A larger graph is narrowed down: evenly spread
        layers first, then those between the last that agrees and the first that does not.

    Raises ExportError where a side cannot run the graph with its layers marked.
    """
    layers = marked(graph)
    low, high, before, passes = 0, len(layers), "", 0
    worst: tuple[int, GraphCheck, Range, Range] | None = None
    while low < high:
        picked = np.unique(np.linspace(low, high - 1, min(at_once, high - low)).round().astype(int))
        names = [layers[i][1] for i in picked]
        passes += 1
        say(f"Run {passes}: {len(names)} of {len(layers)} layers, {names[0]} to {names[-1]}.")
        expected, found = _run(reference, names, feeds), _run(suspect, names, feeds)
        for i, name in zip(picked.tolist(), names, strict=True):
            check = _compare(label, name, expected[name], found[name])
            if not check.passed:
                worst = (i, check, Range.of(expected[name]), Range.of(found[name]))
                high = i
                break
            low, before = i + 1, f"{_name(layers[i][0])} ({layers[i][0].op_type})"
        else:
            break
    if worst is None:
        return Finding(None, before, len(layers), passes)
    i, check, wanted, got = worst
    node, tensor = layers[i]
    inputs = [n for _, n in layers if n in node.input]
    values = _run(reference, inputs, feeds) if inputs else {}
    ranges = {name: Range.of(values[name]) for name in inputs}
    ranges |= {n: Range.of(feeds[n]) for n in node.input if n in feeds}
    layer = Layer(_name(node), node.op_type, tensor, check, wanted, got, ranges)
    return Finding(layer, before, len(layers), passes)


def on_cpu(path: Path) -> Any:
    """ONNX Runtime's CPU provider, as it comes."""
    return OnnxrtRunner(SessionFromOnnx(str(path), providers=["CPUExecutionProvider"]))


def _run(side: tuple[Path, Side], names: Sequence[str], feeds: Arrays) -> dict[str, NDArray[Any]]:
    path, runner = side
    try:
        with _with_outputs(path, names) as file, G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run([runner(file)], data_loader=[dict(feeds)])
        outputs = results[0][1][0]
        return {name: np.asarray(outputs[name]) for name in names}
    except ClipSAMError:
        raise
    except Exception as error:  # polygraphy's, and those of the libraries it runs
        raise ExportError(
            f"{path.name} does not run with its layers marked ({first_line(error)}): mark fewer "
            "with --at-once, or use --provider cpu."
        ) from error


@contextlib.contextmanager
def _with_outputs(path: Path, names: Sequence[str]) -> Iterator[Path]:
    """The graph with these outputs, beside its weights; gone afterwards."""
    file = path.with_name(f".{path.stem}.{os.getpid()}.marked.onnx")
    model = onnx.load(path, load_external_data=False)
    try:
        onnx.save(modify_outputs(model, outputs=list(names)), file)
        yield file
    finally:
        file.unlink(missing_ok=True)


def _compare(
    label: tuple[str, str, str], name: str, expected: NDArray[Any], found: NDArray[Any]
) -> GraphCheck:
    """As the gate compares outputs; infinities that both have, of a mask for one, are equal."""
    graph, case, precision = label
    if expected.shape == found.shape:
        same = ~np.isfinite(expected) & (expected == found)
        expected, found = np.where(same, 0, expected), np.where(same, 0, found)
    return compare(graph, case, name, expected.astype(np.float32), found, precision)


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]
