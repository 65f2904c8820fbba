"""How a station is doing: counts, times by stage, alarms, drift, in one dictionary."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from clipsam.runtime.core.result import ANOMALOUS, NOT_JUDGED, VERDICTS
from clipsam.runtime.station.drift import Drift
from clipsam.runtime.station.part import Part
from clipsam.runtime.station.schema import now

_WINDOW = 1000  # parts that times and shares are of
STALLED = 60.0  # seconds without a part done, while some are under way, at least


class Health:
    """What a station tells about itself; threads may share one.

    Attributes:
      alarms: kind -> (since, message), of those that are on.
    """

    def __init__(
        self,
        drift: Drift | None = None,
        about: Mapping[str, Any] | None = None,
        stalled: float = STALLED,
    ) -> None:
        """`about` is told as it is: what runs. `stalled`: see `alive`, in seconds."""
        self._stalled = stalled
        self._lock = threading.Lock()
        self._since, self._about, self._drift = now(), dict(about or {}), drift
        self._counts: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
        self._reasons: Counter[str] = Counter()
        self._times: deque[Mapping[str, float]] = deque(maxlen=_WINDOW)
        self._recent: deque[tuple[str, bool, bool]] = deque(maxlen=_WINDOW)
        self._last: tuple[str | None, str | None] = (None, None)
        self._under_way, self._progress = 0, time.monotonic()
        self.alarms: dict[str, tuple[str, str]] = {}
        self.on_alarm: Callable[[str, str], None] = lambda kind, message: None

    def alarm(self, kind: str, message: str | None) -> None:
        """Raise an alarm of a kind, or end it (None). Only changes are told: stderr, `on_alarm`."""
        with self._lock:
            if message is None:
                if self.alarms.pop(kind, None) is None:
                    return
                text = f"over: {kind}"
            else:
                if kind in self.alarms:
                    self.alarms[kind] = (self.alarms[kind][0], message)
                    return
                self.alarms[kind] = (now(), message)
                text = f"alarm: {kind}: {message}"
        with suppress(OSError, ValueError):  # nobody reads it any more: no reason to stop
            print(text, file=sys.stderr, flush=True)
        self.on_alarm(kind if message else f"{kind}_over", message or "")

    def count(self, name: str, number: int = 1) -> None:
        """Count something else, such as duplicates."""
        with self._lock:
            self._counts[name] += number

    def taken(self) -> None:
        """A part is under way."""
        with self._lock:
            if not self._under_way:
                self._progress = time.monotonic()
            self._under_way += 1

    def judged(self, part: Part) -> None:
        """A part that was under way has its verdict."""
        verdict = part.verdict or NOT_JUDGED
        with self._lock:
            self._under_way = max(0, self._under_way - 1)
            self._progress = time.monotonic()
            self._counts[verdict] += 1
            self._reasons.update(part.reasons)
            self._recent.append((verdict, bool(part.refined), bool(part.late)))
            if part.timings:
                self._times.append(part.timings)
            self._last = (part.judged_at, verdict)
            change = None
            if self._drift is not None and part.score is not None and verdict != NOT_JUDGED:
                change = self._drift.add(part.score)
        if change is not None:
            self.alarm("drift", change or None)

    def forget_under_way(self) -> None:
        """What was under way is not any more: it is begun again."""
        with self._lock:
            self._under_way = 0

    @property
    def alive(self) -> bool:
        """Whether parts that are under way get done, one within `stalled` seconds."""
        with self._lock:
            return not self._under_way or time.monotonic() - self._progress < self._stalled

    @property
    def judged_count(self) -> int:
        """Parts that got a verdict of any kind since the start."""
        with self._lock:
            return sum(self._counts[verdict] for verdict in VERDICTS)

    def snapshot(self, source: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Everything, in JSON's types; times are ms of the last 1000 parts."""
        alive = self.alive
        with self._lock:
            recent, count = list(self._recent), len(self._recent)
            return {
                "at": now(),
                "since": self._since,
                "alive": alive,
                "alarms": {
                    kind: {"since": since, "message": message}
                    for kind, (since, message) in sorted(self.alarms.items())
                },
                "parts": dict(self._counts),
                "reasons": dict(self._reasons),
                "under_way": self._under_way,
                "last": {"at": self._last[0], "verdict": self._last[1]},
                "recent": {
                    "parts": count,
                    "anomalous": _share([verdict == ANOMALOUS for verdict, _, _ in recent]),
                    "not_judged": _share([verdict == NOT_JUDGED for verdict, _, _ in recent]),
                    "sam": _share([refined for _, refined, _ in recent]),
                    "late": _share([late for _, _, late in recent]),
                },
                "latency_ms": _percentiles(list(self._times)),
                "drift": None if self._drift is None else self._drift.to_dict(),
                "source": dict(source or {}),
                **self._about,
            }


def _share(flags: list[bool]) -> float | None:
    return round(sum(flags) / len(flags), 4) if flags else None


def _percentiles(times: list[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """stage -> p50 and p99, of the parts that had it."""
    stages: dict[str, list[float]] = {}
    for part in times:
        for stage, ms in part.items():
            stages.setdefault(stage, []).append(ms)
    return {
        stage: {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 99)}
        for stage, values in stages.items()
    }
