"""From a bundle to TensorRT engines for the GPU of this machine, each through the gate.

Engines that are there and valid are kept. A fresh one lives in a temporary folder until it and the
three together have passed; only then is it written, with its sidecar and layer information. That of
`prepare` is judged by itself: where it does not pass, the box resizes on the host. Needs
TensorRT, NumPy and OpenCV: neither torch nor onnx nor onnxruntime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clipsam.export.parity.golden import GOLDEN, GoldenOutputs, read_golden
from clipsam.export.parity.prepare import LARGE, SIZES, check_prepare, worst
from clipsam.export.parity.profiles import axis_sizes, graph_profiles
from clipsam.export.parity.tensors import GraphCheck
from clipsam.export.trt.builder import build_engine, timing_cache_path
from clipsam.export.trt.gate import GateError, check_session, check_whole
from clipsam.runtime.backends.base import Session, open_session
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import can_run, preferred_by
from clipsam.runtime.backends.trt.cuda import Cuda
from clipsam.runtime.backends.trt.engine_store import (
    ENGINES,
    Box,
    check_engine,
    fingerprint,
    write_engine,
)
from clipsam.runtime.backends.trt.library import import_tensorrt
from clipsam.runtime.backends.trt.sidecar import BuildFlags, Sidecar
from clipsam.runtime.bundle import GRAPHS, PREPARE, Bundle, GraphEntry
from clipsam.runtime.core.errors import (
    BundleError,
    EngineError,
    ExportError,
    OutputError,
    SessionError,
)
from clipsam.runtime.core.files import onnx_digest, write_bytes

LAYERS_SUFFIX = ".layers.json"
Say = Callable[[str], object]


@dataclass
class EngineReport:
    """What became of the engines, each as "GRAPH PRECISION".

    Attributes:
      written: fresh and passed; kept: there already.
      refused: what the gate said of those that were replaced by a safer precision.
      checks: every comparison of a fresh engine.
    """

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    checks: list[GraphCheck] = field(default_factory=list)


def build_engines(
    folder: Path,
    precisions: Sequence[str] | None = None,
    flags: BuildFlags | None = None,
    fallback: bool = False,
    say: Say = lambda text: None,
) -> EngineReport:
    """Build and judge the engines of the bundle in `folder`, those of all its graphs.

    `precisions`: None is the one TensorRT prefers of those the bundle has. With `fallback`, what
    the gate refuses is built in the next safer precision. Raises BundleError, ExportError
    (GateError from the gate), SessionError or OutputError; then no engine of that precision was
    written.
    """
    for precision in precisions or ():
        if precision in PRECISIONS and not can_run("tensorrt", precision):
            provider = " and ".join(PRECISIONS[precision].made_for)
            raise ExportError(
                f"{precision} is for provider {provider} alone and has no engines: leave it out, "
                "and use fp16 or fp32."
            )
    trt, cuda = import_tensorrt(), Cuda()
    bundle = Bundle.open(folder)
    if precisions is None:
        built = bundle.precisions
        precisions = [p for p in preferred_by("tensorrt") if PRECISIONS[p].there(built)][:1]
    for precision in precisions:  # before the minutes that follow
        for name in GRAPHS:
            bundle.graph_entry(name, precision)
    if GOLDEN not in bundle.manifest.files and (folder / GOLDEN).exists():
        raise BundleError(
            f"{GOLDEN} is not one of the bundle's files: build the bundle again with "
            "`python export/build_engines.py`."
        )
    golden = read_golden(folder)
    report = EngineReport()
    for precision in dict.fromkeys(precisions):
        while True:
            job = _Job(trt, cuda, bundle, golden, flags or BuildFlags(), fallback, say)
            try:
                job.run(precision)
            except GateError as error:
                # Each graph passed alone, so none can be replaced: all of them are.
                if not fallback or error.graph is not None or error.safer is None:
                    raise
                say(str(error))
                report.refused.append(str(error))
                precision = error.safer
                continue
            break
        report.written += job.report.written
        report.kept += [what for what in job.report.kept if what not in report.written]
        report.refused += job.report.refused
        report.checks += job.report.checks
    return report


@dataclass
class _Fresh:
    """An engine that is there in its temporary folder alone."""

    sidecar: Sidecar
    path: Path
    layers: str

    def passed(self, **gate: Any) -> _Fresh:
        """The same, with more that the gate said of it."""
        return replace(self, sidecar=replace(self.sidecar, gate={**self.sidecar.gate, **gate}))


class _Job:
    """The engines of one precision."""

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        bundle: Bundle,
        golden: GoldenOutputs,
        flags: BuildFlags,
        fallback: bool,
        say: Say,
    ) -> None:
        self.trt, self.cuda, self.bundle, self.golden = trt, cuda, bundle, golden
        self.flags, self.fallback, self.say = flags, fallback, say
        self.box = Box(trt.__version__, cuda.compute_capability, cuda.gpu_name)
        self.report = EngineReport()

    def run(self, precision: str) -> None:
        """Build what is missing, judge it, write it."""
        engines = self.bundle.folder / ENGINES
        try:
            engines.mkdir(exist_ok=True)
            staging = tempfile.TemporaryDirectory(prefix=".unjudged.", dir=engines)
        except OSError as error:
            raise OutputError(
                f"{engines} cannot be written ({error.strerror}): free some space, or copy the "
                "bundle to where it can be changed."
            ) from error
        with staging as temporary:
            fresh = [
                *self._judged(precision, Path(temporary)),
                *self._prepare(Path(temporary)),
            ]
            for made in fresh:  # their sessions are closed
                self._write(made)

    def _judged(self, precision: str, temporary: Path) -> list[_Fresh]:
        """The engines that were missing, built in `temporary`, which passed alone and together."""
        fresh: list[_Fresh] = []
        with ExitStack() as stack:
            sessions = {}
            for name in GRAPHS:
                session, made = self._graph(name, precision, temporary)
                sessions[name] = stack.enter_context(session)
                fresh += [made] if made is not None else []
            if not fresh:
                return []
            self.say("The three engines together.")
            whole = check_whole(
                self.bundle, sessions, self.golden.pictures_for(precision), precision
            )
        together = {
            "pictures": len(whole),
            "mask_iou": min(check.mask_iou for check in whole),
            "scores": max(check.scores for check in whole),
            "final_map": max(check.final_map for check in whole),
        }
        return [made.passed(end_to_end=together) for made in fresh]

    def _prepare(self, temporary: Path) -> list[_Fresh]:
        """The engine of `prepare`, if it was missing and passed; always in float32."""
        entry = self.bundle.manifest.prepare
        if entry is None:
            return []
        if self._holds(PREPARE, entry):
            self.report.kept.append(f"{PREPARE} {entry.precision}")
            return []
        session, made = self._built(PREPARE, entry, temporary)
        with session:
            try:
                gate = worst(check_prepare(session, (*SIZES, *LARGE)))
            except (ExportError, SessionError) as error:
                refusal = f"{error} Its engine was not written: pictures are resized on the host."
                self.say(refusal)
                self.report.refused.append(refusal)
                return []
        return [made.passed(**gate)]

    def _graph(self, name: str, precision: str, temporary: Path) -> tuple[Session, _Fresh | None]:
        """The engine of a graph, opened; that which is there, or a fresh one that passed alone."""
        while True:
            entry = self.bundle.graph_entry(name, precision)
            if self._holds(name, entry):
                self.report.kept.append(f"{name} {entry.precision}")
                return self._open(self.bundle.folder, entry), None
            try:
                return self._fresh(name, entry, temporary)
            except GateError as error:
                if not self.fallback or error.safer is None:
                    raise
                self.say(str(error))
                self.report.refused.append(str(error))
                precision = error.safer

    def _holds(self, name: str, entry: GraphEntry) -> bool:
        """Whether a valid engine is there that was built as is asked now."""
        path = self._folder(entry.precision) / f"{name}.engine"
        if not path.exists():
            return False
        digest = self._digest(entry)
        try:
            found = check_engine(self.bundle.folder, path, name, entry.precision, digest, self.box)
        except EngineError as error:
            self.say(str(error))
            return False
        return found.sidecar.flags == self._flags(entry.precision)

    def _flags(self, precision: str) -> BuildFlags:
        return replace(self.flags, tf32=precision == "tf32")

    def _folder(self, precision: str) -> Path:
        return self.box.folder(self.bundle.folder, precision)

    def _built(self, name: str, entry: GraphEntry, temporary: Path) -> tuple[Session, _Fresh]:
        """A fresh engine in `temporary`, opened and not judged."""
        self.say(f"Building {name} in {entry.precision} for {self.box}.")
        profiles = graph_profiles(entry, axis_sizes(self.bundle.manifest))
        built = build_engine(
            self.trt,
            self.cuda,
            self.bundle.folder / entry.file,
            profiles,
            self._flags(entry.precision),
            timing_cache_path(self.bundle.folder, self.box),
        )
        sidecar = Sidecar(
            graph=name,
            precision=entry.precision,
            tensorrt=self.box.tensorrt,
            compute_capability=self.box.compute_capability,
            gpu=self.cuda.gpu_name,
            driver=self.cuda.driver_version,
            onnx_sha256=self._digest(entry),
            **fingerprint(built.plan),
            inputs=entry.inputs,
            outputs=entry.outputs,
            profiles=profiles,
            flags=self._flags(entry.precision),
        )
        path = write_engine(self.box.folder(temporary, entry.precision), built.plan, sidecar)
        made = _Fresh(sidecar, path, built.layers)
        del built  # gigabytes, which the session reads again
        return self._open(temporary, entry), made

    def _fresh(self, name: str, entry: GraphEntry, temporary: Path) -> tuple[Session, _Fresh]:
        """A fresh engine that passed alone, opened."""
        session, made = self._built(name, entry, temporary)
        try:
            checks = check_session(
                name,
                session,
                self.golden.cases_for(name, entry.precision),
                entry.precision,
                [p for p, graphs in self.bundle.manifest.variants.items() if name in graphs],
            )
        except BaseException:
            session.close()
            raise
        self.report.checks += checks
        return session, made.passed(
            max_rel=max(check.max_rel for check in checks),
            rms_rel=max(check.rms_rel for check in checks),
        )

    def _open(self, folder: Path, entry: GraphEntry) -> Session:
        return open_session(
            folder / entry.file,
            "tensorrt",
            precision=entry.precision,
            sha256=self._digest(entry),
        )

    def _digest(self, entry: GraphEntry) -> str:
        return onnx_digest(self.bundle.manifest.files, entry.file)

    def _write(self, made: _Fresh) -> None:
        folder = self._folder(made.sidecar.precision)
        path = write_engine(folder, made.path.read_bytes(), made.sidecar)
        write_bytes(path.with_suffix(LAYERS_SUFFIX), made.layers.encode())
        self.report.written.append(f"{made.sidecar.graph} {made.sidecar.precision}")
