"""A traceable module becomes an ONNX file: one call, quiet, checked.

Traps of the exporter that this file closes: it bakes in an axis whose example has size 1; it
prints progress; it stores weights beside the graph whatever their size; it writes paths of this
machine into the file; and a module that asks for gradients is exported with them.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from clipsam.export.graphs.fixed_shapes import fix_shapes
from clipsam.runtime.backends.base import TensorSpec
from clipsam.runtime.core.errors import ExportError, first_line
from clipsam.runtime.core.files import DATA_SUFFIX

OPSETS = (20, 23)  # tested: 20 is portable, 23 has one `Attention` node per attention
ATTENTION_OPSET = 23

# A protobuf file ends at 2 GiB; below this the weights are kept in the graph's own file.
_INLINE_BYTES = 1_500_000_000

# For each input, the names of its free axes, e.g. {"image": {0: "batch"}, "text": {0: "batch"}}.
Axes = Mapping[str, Mapping[int, str]]


def export_graph(
    module: nn.Module,
    example: Mapping[str, Tensor],
    axes: Axes,
    outputs: Sequence[str],
    path: Path,
    opset: int = OPSETS[0],
) -> None:
    """Write `module` as an ONNX graph to `path` (with `path`.data beside it above 1.5 GB).

    Args:
      module: returns one tensor, or a tuple of as many as `outputs` names.
      example: every input by name, in the order of `forward`; free axes at least 2 long.
      axes: names of the free axes of each input; the same name is the same size.
      outputs: names of what `module` returns.
      opset: ONNX operator set.

    Raises ExportError if the exporter fails, an axis that should be free is not, or the file is
    not valid ONNX.
    """
    for name, free in axes.items():
        for axis in free:
            if example[name].shape[axis] < 2:  # the exporter would silently fix it at 1
                raise ExportError(
                    f"The example of {name} has size {example[name].shape[axis]} along its free "
                    f"axis {axis}: give one of at least 2."
                )
    module.eval().requires_grad_(False)
    dims = {name: torch.export.Dim(name) for free in axes.values() for name in free.values()}
    shapes: tuple[Any, ...] = tuple(
        {axis: dims[dim] for axis, dim in axes.get(name, {}).items()} or None for name in example
    )
    if any(p.kind is p.VAR_POSITIONAL for p in signature(module.forward).parameters.values()):
        shapes = (shapes,)  # `forward(*inputs)` has one parameter
    size = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    try:
        with _quiet(), _uncollected(), _without_pairs(), torch.no_grad():
            torch.onnx.export(
                module,
                tuple(example.values()),
                path,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(example),
                output_names=list(outputs),
                opset_version=opset,
                external_data=size > _INLINE_BYTES,
                verbose=False,
            )
            _clean(path)
            onnx.checker.check_model(str(path))
    except OSError:
        raise  # a full disk is the caller's affair
    except Exception as error:
        raise ExportError(
            f"PyTorch could not export {path.stem} at opset {opset} ({type(error).__name__}: "
            f"{first_line(error)}): use opset {OPSETS[0]} and the library versions of the "
            "constraints file."
        ) from error
    inputs, _ = tensor_specs(path)
    for spec in inputs:
        for axis, dim in axes.get(spec.name, {}).items():
            if spec.shape[axis] != dim:
                raise ExportError(
                    f"Axis {axis} of {spec.name} in {path.stem} came out as {spec.shape[axis]!r} "
                    f"instead of the free axis {dim!r}: use the library versions of the "
                    "constraints file."
                )


def save_graph(model: onnx.ModelProto, path: Path, inline_bytes: int = _INLINE_BYTES) -> None:
    """Write a model with all its weights, beside it if they are more than that, and check it."""
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    external, beside = size > inline_bytes, path.with_name(f"{path.name}{DATA_SUFFIX}")
    beside.unlink(missing_ok=True)  # onnx appends to a file that exists
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=beside.name if external else None,
    )
    onnx.checker.check_model(str(path))


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) that the ONNX file at `path` declares."""
    graph = onnx.load(path, load_external_data=False).graph
    return tuple(map(_spec, graph.input)), tuple(map(_spec, graph.output))


def _clean(path: Path) -> None:
    """Take out what the exporter noted for debugging and all shape arithmetic.

    The notes are half of a small file and hold the source's lines and its place on this machine.
    An `Attention` node would compute its softmax in the dtype of its inputs.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    for noted in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]
    for weights in graph.initializer:
        del weights.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        if node.op_type == "Attention":
            precision = onnx.helper.make_attribute("softmax_precision", TensorProto.FLOAT)
            node.attribute.append(precision)
    fix_shapes(model)
    onnx.save(model, path)  # refers to external data where it lies


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return TensorSpec(value.name, dtype.name, shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of the exporter's talk on stdout, stderr or in warnings; errors come through.

    Its deprecation warnings are about its own code and its dependencies', which nobody who
    builds a bundle can act on.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which takes a tenth of an export's time among objects that all
    live to its end."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def _without_pairs() -> Iterator[None]:
    """Without the one rule of the exporter's optimizer that looks at every pair of nodes, twice: a
    quarter of the time of SAM's ViT-B, and its square for ViT-H. It makes one `Split` of two slices
    that are a tensor's halves, which our graphs do not have."""
    from onnxscript import rewriter

    rules = "_DEFAULT_REWRITE_RULES"
    every = getattr(rewriter, rules, None)  # of another name in other versions: only slower
    if every is None:
        yield
        return
    setattr(rewriter, rules, tuple(rule for rule in every if rule.name != "SlicesSplit"))
    try:
        yield
    finally:
        setattr(rewriter, rules, every)
