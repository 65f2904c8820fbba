"""How far a TensorRT build is, and how it is asked to stop."""

from __future__ import annotations

import sys
import threading
from typing import Any


class BuildProgress:
    """A bar on stderr for the phases of one build; a context manager.

    TensorRT reports nested phases from threads of its own. The bar counts the steps of the
    outermost ones and names the phase that moved last. Without tqdm there is no bar.

    Attributes:
      cancel: set it and the build ends at its next step.
    """

    def __init__(self, title: str) -> None:
        self.cancel = threading.Event()
        self._title = title
        self._lock = threading.Lock()
        self._outer: dict[str, int] = {}  # phase -> steps done
        self._bar: Any = None

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, within `parent` unless that is None."""
        with self._lock:
            if not parent:
                self._outer[phase] = 0
                if self._bar is not None:
                    self._bar.total = (self._bar.total or 0) + steps
            self._show(phase)

    def step(self, phase: str, step: int) -> bool:
        """A step is done; returns whether the build goes on."""
        with self._lock:
            if phase in self._outer:
                done = max(self._outer[phase], step + 1)
                if self._bar is not None:
                    self._bar.update(done - self._outer[phase])
                self._outer[phase] = done
            self._show(phase)
        return not self.cancel.is_set()

    def finish(self, phase: str) -> None:
        """A phase ended, whether or not all its steps were done."""
        with self._lock:
            self._outer.pop(phase, None)

    def _show(self, phase: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(phase[:40], refresh=False)

    def __enter__(self) -> BuildProgress:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            return self
        interval = 0.1 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=0, desc=self._title, file=sys.stderr, unit="step", mininterval=interval
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def make_monitor(trt: Any, progress: BuildProgress) -> Any:
    """An IProgressMonitor that tells `progress`. Keep it for as long as the build runs."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # without this the binding has no C++ side

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

    return Monitor()
