"""The graph `prepare` of a bundle: written, held against the host, described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipsam.export.graphs.onnx_export import tensor_specs
from clipsam.export.graphs.prepare import write_prepare
from clipsam.export.parity.prepare import PrepareCheck, check_prepare
from clipsam.runtime.backends.base import open_session
from clipsam.runtime.bundle import PREPARE, GraphEntry


def build_prepare(
    folder: Path,
    clip_size: int,
    sam_size: int,
    opset: int,
    threads: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[GraphEntry, list[PrepareCheck]]:
    """Write `prepare.onnx` into `folder` for inputs of these sides in pixels.

    Calls `progress` once for every one of `parity.prepare.SIZES`. Raises ExportError where its
    pictures are not the host's.
    """
    path = folder / f"{PREPARE}.onnx"
    write_prepare(path, clip_size, sam_size, opset)
    with open_session(path, "cpu", threads) as session:
        checks = check_prepare(session, progress=progress)
    return GraphEntry(path.name, *tensor_specs(path)), checks
