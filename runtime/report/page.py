"""The report as one HTML file that loads nothing and runs only its own script.

Everything that comes from the data is text: Jinja2 escapes it, the data lie in a JSON block that no
browser runs, and the script puts them into the page as text only. The page's policy allows the one
script and the one style by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from clipsam.runtime.core.result import ANOMALOUS, NOT_JUDGED, VERDICTS
from clipsam.runtime.report.change import Change, find_change
from clipsam.runtime.report.parts import Box, Part, Run
from clipsam.runtime.report.pictures import Pair
from clipsam.runtime.station.part import LABELS

_SCRIPTS = ("data", "draw", "trend", "scores", "parts", "detail", "tables", "main")
_STAGES = ("read", "rough", "prompts", "encode", "decode", "fuse", "total", "latency")


def render(run: Run, pictures: Mapping[int, Pair], made: float, version: str) -> str:
    """The page. `pictures` by index into `run.parts`; `made` in seconds since 1970."""
    page = files("clipsam.runtime.report") / "page"
    script = "\n".join((page / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}\n}})();'
    style = (page / "report.css").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in our order
    template = environment.from_string((page / "report.html.j2").read_text("utf-8"))
    return template.render(
        title=run.title,
        version=version,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        data=_data(run, made),
        pictures={str(index): pair for index, pair in pictures.items()},
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(run: Run, made: float) -> dict[str, Any]:
    """What the script reads: a list a column, which is a third of the size of a list of parts."""
    parts = run.parts
    timed = all(part.taken is not None for part in parts)
    categories, runs = _Numbers(), _Numbers()
    stages = [s for s in _STAGES if any(s in p.timings for p in parts)]
    return {
        "title": run.title,
        "made": made,
        "leftOut": run.left_out,
        "timed": timed,
        "verdicts": VERDICTS,
        "name": [p.name for p in parts],
        "serial": {i: p.serial for i, p in enumerate(parts) if p.serial},
        "verdict": [VERDICTS.index(p.verdict) for p in parts],
        "score": [_short(p.score) for p in parts],
        "limit": [_short(p.limit) for p in parts],
        "time": [round(p.taken) for p in parts if p.taken is not None] if timed else None,
        "category": [categories(p.category) for p in parts],
        "categories": categories.known,
        "label": {i: LABELS.index(p.label) for i, p in enumerate(parts) if p.label in LABELS},
        "reasons": {i: p.reasons for i, p in enumerate(parts) if p.reasons},
        "message": {i: p.message for i, p in enumerate(parts) if p.message},
        "run": [runs(tuple(p.ran.items())) for p in parts],
        "runs": [dict(ran) for ran in runs.known],
        "sam": [int(p.sam) for p in parts],
        "late": [i for i, p in enumerate(parts) if p.late],
        "stages": {s: [_short(p.timings.get(s), 4) for p in parts] for s in stages},
        "size": {i: p.size for i, p in enumerate(parts) if p.boxes and p.size},
        "boxes": {i: [_box(b) for b in p.boxes] for i, p in enumerate(parts) if p.boxes and p.size},
        "usual": None
        if run.usual is None
        else {
            "range": [_short(s) for s in np.quantile(run.usual.scores, (0.05, 0.5, 0.95))],
            "limit": run.usual.limit,
        },
        "changes": _changes(parts),
        "events": [(e.at, e.kind, e.message) for e in reversed(run.events)],
    }


def _box(box: Box) -> list[Any]:
    """x, y, width, height, score; with a name also that, and 1 where it was ignored."""
    values = [box.x, box.y, box.width, box.height, _short(box.score)]
    return [*values, box.kind, *([1] if box.ignored else [])] if box.kind else values


def _changes(parts: Sequence[Part]) -> dict[str, dict[str, float]]:
    """What changed over the run, each with the index of the first part after it."""
    found = {}

    def look(name: str, of: Callable[[Part], float | None], ranked: bool = False) -> None:
        pairs = [(i, v) for i, part in enumerate(parts) if (v := of(part)) is not None]
        change = find_change(np.array([v for _, v in pairs], np.float64), ranked)
        if change is not None:
            found[name] = _json(change, [i for i, _ in pairs])

    look("anomalous", lambda p: None if p.verdict == NOT_JUDGED else float(p.verdict == ANOMALOUS))
    look("notJudged", lambda p: float(p.verdict == NOT_JUDGED))
    look("score", lambda p: p.score, ranked=True)
    look("time", lambda p: p.timings.get("total"), ranked=True)
    return found


def _json(change: Change, indices: Sequence[int]) -> dict[str, float]:
    return {
        "start": indices[change.start],
        "before": round(change.before, 5),
        "after": round(change.after, 5),
    }


def _short(value: float | None, digits: int = 5) -> float | None:
    """Fewer digits than a float has: the page's size is mostly digits."""
    return None if value is None else float(f"{value:.{digits}g}")


class _Numbers:
    """Numbers values in the order in which they first come."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, value: Hashable) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def known(self) -> list[Any]:
        return list(self._numbers)
