"""Opening a bundle: which engine runs every graph, and whether it is the one declared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path
from typing import TypeVar

from clipsam.runtime.backends.base import (
    Session,
    backend_of,
    check_device_id,
    check_made_for,
    open_session,
)
from clipsam.runtime.backends.precision import PRECISIONS
from clipsam.runtime.backends.providers import preferred_by
from clipsam.runtime.bundle import FLOAT32, GRAPHS, PREPARE, Bundle, GraphEntry
from clipsam.runtime.calibration.record import Calibration
from clipsam.runtime.core.errors import BundleError, OptionError
from clipsam.runtime.core.files import onnx_digest
from clipsam.runtime.core.log import get_logger
from clipsam.runtime.options import InspectOptions, asked_of, calibrated

_LOG = get_logger()

M = TypeVar("M", bound="OpenBundle")


class OpenBundle:
    """A bundle whose engines are open, for the options of one user.

    Attributes:
      bundle: what was opened.
      sessions: the engine of every graph in `bundle.GRAPHS`, and on a device that of
        `bundle.PREPARE`; closed with the model.
      options: how sensitive it is, and where it looks.
      calibration: what good parts taught; None without.
    """

    def __init__(
        self,
        bundle: Bundle,
        sessions: Mapping[str, Session],
        options: InspectOptions | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.bundle, self.sessions, self.calibration = bundle, sessions, calibration
        self.options = calibrated(options or InspectOptions(), calibration)

    @property
    def provider(self) -> str:
        """What really runs the graphs, one of `PROVIDERS`."""
        return self.sessions["clip_umci"].provider

    @property
    def device_id(self) -> int | None:
        """Index of the GPU that runs the graphs, None on a CPU."""
        return self.sessions["clip_umci"].device_id

    @property
    def precisions(self) -> dict[str, str]:
        """graph -> what it computes in, one of `PRECISIONS`."""
        return {name: self.sessions[name].precision for name in GRAPHS}

    @classmethod
    def open(
        cls: type[M],
        bundle: Bundle | Path | str,
        provider: str = "cpu",
        threads: int | None = None,
        precision: str | None = None,
        device_id: int | None = None,
        *,
        options: InspectOptions | None = None,
        calibration: Calibration | Path | str | None = None,
    ) -> M:
        """Open the bundle (a folder) with every graph on `provider`: "cpu", "cuda" or "tensorrt".

        `threads` bounds the CPU threads of a graph (None: all cores). `precision` is one of
        `precision.PRECISIONS`; None takes the provider's fastest of those that are there and keep
        the result (`providers.preferred_by`). `device_id` chooses among several GPUs, as CUDA
        counts them. Every file is verified that is not another precision's. `options` say how
        sensitive it is and where it looks; `calibration` (a file of `clipsam calibrate`) gives
        the limit and what may be judged.
        Raises OptionError, CalibrationError, BundleError or SessionError, EngineError where no
        TensorRT engine fits this box.
        """
        check_threads(threads)
        device_id = check_device_id(provider, device_id)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=False)
        if calibration is not None:
            if not isinstance(calibration, Calibration):
                calibration = Calibration.read(calibration)
            calibration.check_made_for(opened.id)
        # What cannot be asked for fails before gigabytes are read.
        asked_of(opened, calibrated(options or InspectOptions(), calibration))
        sessions = open_sessions(opened, provider, threads, precision, device_id)
        model = cls(opened, sessions, options, calibration)
        gpu = "" if model.device_id is None else f" (GPU {model.device_id})"
        _LOG.info("bundle %s on %s%s: %s", opened.id, model.provider, gpu, model.precisions)
        return model

    def close(self) -> None:
        """Free every engine, each whatever became of the others. Raises SessionError."""
        with ExitStack() as closing:
            for session in self.sessions.values():
                closing.callback(session.close)

    def __enter__(self: M) -> M:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_threads(threads: int | None) -> None:
    """Raise OptionError for a number of threads that no machine of this size takes."""
    most = max(64, 4 * (os.cpu_count() or 1))
    known = isinstance(threads, Integral) and not isinstance(threads, bool)
    if threads is not None and not (known and 1 <= threads <= most):
        raise OptionError(
            f"threads={threads!r} must be between 1 and {most} on this machine, or None for all "
            "cores."
        )


def open_sessions(
    bundle: Bundle,
    provider: str,
    threads: int | None,
    precision: str | None,
    device_id: int | None,
) -> dict[str, Session]:
    """Every graph of the bundle, its file verified first; arguments and errors as in `open`.

    `prepare` is among them where the bundle has it ready for a device. Where one cannot be opened,
    those before it are closed again.
    """
    chosen = _choose_precisions(bundle, provider, precision, device_id)
    entries = {name: bundle.graph_entry(name, chosen[name]) for name in GRAPHS}
    prepare = _prepare(bundle, provider, device_id)
    if prepare is not None:  # in float32, whatever the others are in
        entries[PREPARE], chosen = prepare, {**chosen, PREPARE: FLOAT32}
    bundle.verify(bundle.files_for(entries.values()))
    sessions = {}
    with ExitStack() as stack:
        for name, entry in entries.items():
            found = None
            if name != PREPARE:
                found = _found_as(bundle, provider, name, chosen[name], device_id)
            session = open_session(
                bundle.folder / entry.file,
                provider,
                threads,
                precision=found or chosen[name],
                sha256=onnx_digest(bundle.manifest.files, entry.file),
                device_id=device_id,
            )
            sessions[name] = stack.enter_context(session)
            _check_contract(entry, session)
        stack.pop_all()
    fastest = preferred_by(provider)[0]
    if provider != "cpu" and precision is None and fastest not in chosen.values():
        _LOG.warning(
            "%s is fastest in %s, which bundle %s does not have ready: build it with "
            "--precision %s.",
            provider,
            fastest,
            bundle.id,
            fastest,
        )
    return sessions


def _prepare(bundle: Bundle, provider: str, device_id: int | None) -> GraphEntry | None:
    """The graph `prepare`, where `provider` has a device of its own and it is ready for it."""
    entry = bundle.manifest.prepare
    if provider == "cpu" or entry is None:
        return None  # on the CPU it would be slower than the host's own resizes
    path = bundle.folder / entry.file
    if backend_of(provider).available(path, FLOAT32, device_id):
        return entry
    _LOG.warning(
        "Pictures are resized on the host: bundle %s has no engine of %s for this box. Build it "
        "with `python export/build_engines.py --engines-only %s`.",
        bundle.id,
        PREPARE,
        bundle.folder,
    )
    return None


def _choose_precisions(
    bundle: Bundle, provider: str, asked: str | None, device_id: int | None = None
) -> dict[str, str]:
    """graph -> the bundle's precision to open it in.

    Unless one is asked for: the first that is preferred and there for every graph, so that what
    runs is what was compared as a whole; else the first that is there for each graph, as a build
    leaves it that had to fall back for one of them.
    """
    if asked is not None:
        check_made_for(provider, asked, bundle.precisions)
        return dict.fromkeys(GRAPHS, asked)
    built = bundle.precisions
    preferred = [p for p in preferred_by(provider) if PRECISIONS[p].there(built)] or [FLOAT32]
    there = {
        name: [p for p in preferred if _found_as(bundle, provider, name, p, device_id)]
        for name in GRAPHS
    }
    for precision in preferred:
        if all(precision in found for found in there.values()):
            return dict.fromkeys(GRAPHS, precision)
    # Where nothing is there, opening the preferred one says what to do.
    return {name: (found or preferred)[0] for name, found in there.items()}


def _found_as(
    bundle: Bundle, provider: str, name: str, precision: str, device_id: int | None = None
) -> str | None:
    """The precision by which the graph's engine is found, or None when it is not there.

    A precision may take over the file of another (int8 has no decoder of its own), so its engine.
    """
    entry = bundle.graph_entry(name, precision)
    backend = backend_of(provider)
    for found in (entry.precision, precision):
        if backend.available(bundle.folder / entry.file, found, device_id):
            return found
    return None


def _check_contract(entry: GraphEntry, session: Session) -> None:
    """Refuse a graph whose tensors are not those that the manifest declares."""
    for declared, found in ((entry.inputs, session.inputs), (entry.outputs, session.outputs)):
        for spec in declared:
            if spec.name not in found or not spec.agrees(found[spec.name]):
                raise BundleError(
                    f"The graph {entry.file} does not have the tensor {spec} that its manifest "
                    "declares: build the bundle again."
                )
