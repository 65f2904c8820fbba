"""From a bundle to TensorRT engines for the GPU of this machine, each through the gate.

Engines that are there and valid are kept. A fresh one lives in a temporary folder until it and the
three together have passed; only then is it written, with its sidecar and layer information. That of
`prepare` is judged by itself: where it does not pass, the box resizes on the host. Needs
TensorRT, NumPy and OpenCV: neither torch nor onnx nor onnxruntime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from clipsam.export.parity.golden import GOLDEN, GoldenOutputs, read_golden
from clipsam.export.parity.prepare import LARGE, SIZES, check_prepare, worst
from clipsam.export.parity.tensors import GraphCheck
from clipsam.export.trt.engine import BoxEngines, FreshEngine, Say
from clipsam.export.trt.gate import GateError, check_session, check_whole
from clipsam.runtime.backends.base import Session
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import can_run, preferred_by
from clipsam.runtime.backends.trt.cuda import Cuda
from clipsam.runtime.backends.trt.engine_store import ENGINES
from clipsam.runtime.backends.trt.library import import_tensorrt
from clipsam.runtime.backends.trt.sidecar import BuildFlags
from clipsam.runtime.bundle import GRAPHS, PREPARE, Bundle, GraphEntry
from clipsam.runtime.core.errors import BundleError, ExportError, OutputError, SessionError


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
    engines = BoxEngines(trt, cuda, bundle, flags or BuildFlags(), say)
    report = EngineReport()
    for precision in dict.fromkeys(precisions):
        while True:
            job = _Job(engines, golden, fallback)
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


class _Job:
    """The engines of one precision."""

    def __init__(self, engines: BoxEngines, golden: GoldenOutputs, fallback: bool) -> None:
        self.engines, self.bundle, self.say = engines, engines.bundle, engines.say
        self.golden, self.fallback = golden, fallback
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
                self.engines.write(made)
                self.report.written.append(f"{made.sidecar.graph} {made.sidecar.precision}")

    def _judged(self, precision: str, temporary: Path) -> list[FreshEngine]:
        """The engines that were missing, built in `temporary`, which passed alone and together."""
        fresh: list[FreshEngine] = []
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

    def _prepare(self, temporary: Path) -> list[FreshEngine]:
        """The engine of `prepare`, if it was missing and passed; always in float32."""
        entry = self.bundle.manifest.prepare
        if entry is None:
            return []
        if self.engines.holds(PREPARE, entry):
            self.report.kept.append(f"{PREPARE} {entry.precision}")
            return []
        session, made = self.engines.build(PREPARE, entry, temporary)
        with session:
            try:
                gate = worst(check_prepare(session, (*SIZES, *LARGE)))
            except (ExportError, SessionError) as error:
                refusal = f"{error} Its engine was not written: pictures are resized on the host."
                self.say(refusal)
                self.report.refused.append(refusal)
                return []
        return [made.passed(**gate)]

    def _graph(
        self, name: str, precision: str, temporary: Path
    ) -> tuple[Session, FreshEngine | None]:
        """The engine of a graph, opened; that which is there, or a fresh one that passed alone."""
        while True:
            entry = self.bundle.graph_entry(name, precision)
            if self.engines.holds(name, entry):
                self.report.kept.append(f"{name} {entry.precision}")
                return self.engines.open(self.bundle.folder, entry), None
            try:
                return self._fresh(name, entry, temporary)
            except GateError as error:
                if not self.fallback or error.safer is None:
                    raise
                self.say(str(error))
                self.report.refused.append(str(error))
                precision = error.safer

    def _fresh(self, name: str, entry: GraphEntry, temporary: Path) -> tuple[Session, FreshEngine]:
        """A fresh engine that passed alone, opened."""
        session, made = self.engines.build(name, entry, temporary)
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
