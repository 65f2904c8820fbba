"""A plot of memory over parts, as SVG: one line a process."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _TOP = 900, 260, 60, 40
_COLOURS = ("#2f6fab", "#c8662b")
Sample = tuple[int, int, float]  # process, parts judged so far, MB


def write_plot(
    path: Path, panels: Sequence[tuple[str, Sequence[Sample]]], unit: str = "parts judged"
) -> None:
    """One panel below the other, each with its title and samples; `unit`: of the second number."""
    height = _HEIGHT * len(panels)
    body = "".join(_panel(*panel, _HEIGHT * n, unit) for n, panel in enumerate(panels))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="{_WIDTH}" height="{height}" '
        f'fill="white"/>\n{body}</svg>\n'
    )


def _panel(title: str, samples: Sequence[Sample], top: int, unit: str) -> str:
    most_parts = max(parts for _, parts, _ in samples) or 1
    most_mb = max(mb for _, _, mb in samples) * 1.2

    def x(parts: float) -> float:
        return round(_LEFT + parts / most_parts * (_WIDTH - _LEFT - 20), 1)

    def y(mb: float) -> float:
        return round(top + _HEIGHT - 40 - mb / most_mb * (_HEIGHT - 40 - _TOP), 1)

    lines = [f'<text x="{_LEFT}" y="{top + 22}">{title}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        mb, parts = share * most_mb, share * most_parts
        lines.append(f'<path d="M{_LEFT} {y(mb)}H{_WIDTH - 20}" stroke="#ddd"/>')
        lines.append(f'<text x="{_LEFT - 8}" y="{y(mb) + 4}" text-anchor="end">{mb:.0f}</text>')
        lines.append(
            f'<text x="{x(parts)}" y="{y(0) + 16}" text-anchor="middle">{parts:.0f}</text>'
        )
    lines.append(f'<text x="8" y="{y(most_mb) - 8}">MB</text>')
    lines.append(f'<text x="{_WIDTH - 20}" y="{y(0) + 32}" text-anchor="end">{unit}</text>')
    for run, found in groupby(samples, lambda sample: sample[0]):
        points = list(found)
        thinned = points[:: max(1, len(points) // 300)]
        way = " ".join(f"{x(parts)},{y(mb)}" for _, parts, mb in thinned)
        colour = _COLOURS[run % 2]
        lines.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return "\n".join(lines) + "\n"
