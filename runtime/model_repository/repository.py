"""A model repository for Triton Inference Server, made of a bundle.

clipsam/config.pbtxt                    the whole method, of Triton's Python backend
clipsam/1/model.py, bundle/             and what it opens
clipsam_clip_umci/config.pbtxt          one graph, of its ONNX Runtime or TensorRT backend
clipsam_clip_umci/1/clip_umci.onnx
clipsam_sam_encoder/, clipsam_sam_decoder/
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from clipsam.runtime.backends.base import check_made_for
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import preferred_by
from clipsam.runtime.backends.trt.engine_store import (
    ENGINES,
    Box,
    Engine,
    has_engine,
    read_engine,
    rebuild_hint,
)
from clipsam.runtime.backends.trt.sidecar import SidecarError, read_sidecar
from clipsam.runtime.bundle import FLOAT32, GRAPHS, MANIFEST, Bundle
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.core.errors import EngineError, OptionError
from clipsam.runtime.core.files import DATA_SUFFIX, not_written, onnx_digest
from clipsam.runtime.model_repository.config import CONFIG, Serving, graph_config, method_config

BUNDLE, CALIBRATION, VERSION = "bundle", "model.calibration", "1"
_PLAN = "model.plan"
_MODEL = '''"""ClipSAM in Triton's Python backend."""

from pathlib import Path

from clipsam.runtime.model_repository.method import Method


class TritonPythonModel(Method):
    """What Triton looks for; its files lie beside this one."""

    folder = Path(__file__).resolve().parent
'''


def write_repository(
    folder: Path, output: Path, serving: Serving, calibration: Path | None = None
) -> dict[str, str]:
    """Write the repository of the bundle in `folder` to `output`, whole or not at all.

    `output` must not be there yet, or be empty. Returns model -> the file it runs. Raises
    OptionError, BundleError, CalibrationError, EngineError, OutputError.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", serving.name):
        raise OptionError(f"{serving.name!r} is no name of a model: use letters, digits, _ and -.")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise OptionError(f"{output} is there already: remove it, or choose another --output.")
    bundle = Bundle.open(folder)
    if calibration is not None:
        Calibration.read(calibration).check_made_for(bundle.id)
    engines: dict[str, Engine] = {}
    if serving.provider == "tensorrt":
        precision, engines = _engines(bundle, serving)
    else:
        precision = _precision(bundle, serving)
    # Not mkdtemp: its folders are for their owner alone, and Triton is somebody else.
    staging = output.parent / f".{output.name}.{secrets.token_hex(8)}"
    try:
        staging.mkdir(parents=True)
        kept = staging / serving.name / VERSION / BUNDLE
        kept.mkdir(parents=True)
        for name in (MANIFEST, *bundle.manifest.files):
            shutil.copyfile(bundle.folder / name, kept / name)
        Bundle.open(kept)  # what was copied is what was meant
        found = {
            f"{serving.name}_{graph}": _graph(staging, kept, bundle, graph, serving, precision, e)
            for graph in GRAPHS
            for e in [engines.get(graph)]
        }
        _method(staging, kept, bundle, serving, precision, engines, calibration)
        if output.is_dir():
            output.rmdir()  # empty; Windows renames onto none
        staging.rename(output)
    except OSError as error:
        raise not_written(output, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return {serving.name: "model.py", **found}


def _precision(bundle: Bundle, serving: Serving) -> str:
    """The one of all graphs. Raises OptionError, SessionError, BundleError."""
    if serving.precision is not None:
        check_made_for(serving.provider, serving.precision, bundle.precisions)
        return serving.precision
    preferred = preferred_by(serving.provider)
    return next((p for p in preferred if PRECISIONS[p].there(bundle.precisions)), FLOAT32)


def _engines(bundle: Bundle, serving: Serving) -> tuple[str, dict[str, Engine]]:
    """The precision, and graph -> its engine, all of one box. Raises EngineError, OptionError."""
    there = sorted(p.name for p in (bundle.folder / ENGINES).glob("*") if p.is_dir())
    chosen = serving.engines
    if chosen is None and len(there) > 1 and serving.precision is not None:
        there = [name for name in there if f"-{serving.precision}-" in name]
    if chosen is None and len(there) == 1:
        chosen = there[0]
    if chosen not in there:
        if not there:
            raise OptionError(
                f"{bundle.folder} has no engines"
                f"{f' in {serving.precision}' if serving.precision else ''}: "
                f"{rebuild_hint(bundle.folder, serving.precision or 'fp16')}."
            )
        raise OptionError(
            f"Say which engines of {bundle.folder} with --engines: it has {', '.join(there)}."
        )
    first = bundle.folder / ENGINES / str(chosen) / f"{next(iter(GRAPHS))}.json"
    try:
        about = read_sidecar(first)
    except SidecarError as error:
        raise EngineError(
            f"The engines of {first.parent} cannot be used ({error}): "
            f"{rebuild_hint(bundle.folder, serving.precision or FLOAT32)}."
        ) from error
    box = Box(about.tensorrt, about.compute_capability, about.gpu)
    found = {}
    for graph in GRAPHS:
        entry = bundle.graph_entry(graph, about.precision)
        # A precision may take over the graph of another, and its engine: int8 has no decoder.
        has = has_engine(bundle.folder, graph, entry.precision, box)
        precision = entry.precision if has else about.precision
        digest = onnx_digest(bundle.manifest.files, entry.file)
        found[graph] = read_engine(bundle.folder, graph, precision, digest, box)
    return about.precision, found


def _graph(
    staging: Path,
    kept: Path,
    bundle: Bundle,
    graph: str,
    serving: Serving,
    precision: str,
    engine: Engine | None,
) -> str:
    """Write the model of one graph; returns the name of its file."""
    name = f"{serving.name}_{graph}"
    folder = staging / name / VERSION
    folder.mkdir(parents=True)
    if engine is not None:
        file, inputs, outputs = _PLAN, engine.sidecar.inputs, engine.sidecar.outputs
        (folder / file).write_bytes(engine.plan)
    else:
        entry = bundle.graph_entry(graph, precision)
        file, inputs, outputs = entry.file, entry.inputs, entry.outputs
        for own in (file, file + DATA_SUFFIX):
            if own in bundle.manifest.files:
                _link(kept / own, folder / own)
    profiles = engine.sidecar.profiles.values() if engine is not None else ()
    batches = [profile.max[0] for profile in profiles]
    text = graph_config(name, file, inputs, outputs, serving, precision, batches)
    (staging / name / CONFIG).write_text(text)
    return file


def _method(
    staging: Path,
    kept: Path,
    bundle: Bundle,
    serving: Serving,
    precision: str,
    engines: dict[str, Engine],
    calibration: Path | None,
) -> None:
    """Write the model of the whole method, but for the bundle's files."""
    (kept.parent / "model.py").write_text(_MODEL)
    if calibration is not None:
        shutil.copyfile(calibration, kept.parent / CALIBRATION)
    for graph, engine in engines.items():
        target = kept / engine.path.relative_to(bundle.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(staging / f"{serving.name}_{graph}" / VERSION / _PLAN, target)
        shutil.copyfile(engine.path.with_suffix(".json"), target.with_suffix(".json"))
    (kept.parents[1] / CONFIG).write_text(method_config(serving, precision))


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, so that gigabytes lie there once; else a copy."""
    try:
        os.link(source, target)
    except OSError:  # a file system without
        shutil.copyfile(source, target)
